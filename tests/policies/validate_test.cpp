// SPDX-License-Identifier: Apache-2.0
// Every policy refuses numbers that make no sense, in a sentence with the field and the value.
#include "adore/policies/every_policy.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

namespace adore::testing {

namespace {

template <class P>
void refuses(P const& policy, std::string const& field, std::string const& value) {
  INFO(field << " = " << value);
  try {
    policy.validate();
    FAIL_CHECK("accepted");
  } catch (std::invalid_argument const& error) {
    std::string const said = error.what();
    CHECK_MESSAGE(said.find(field + " = " + value) != std::string::npos, said);
  }
}

}  // namespace

TEST_CASE("a policy names the field and the value that it refuses") {
  refuses(sliding_window{.size = -1}, "sliding_window.size", "-1");
  refuses(streaming_llm{.sinks = -2}, "streaming_llm.sinks", "-2");
  refuses(streaming_llm{.sinks = 4, .window = 0}, "streaming_llm.window", "0");
  refuses(streaming_llm{.sinks = 0, .window = -1}, "streaming_llm.window", "-1");
  refuses(strided{.interval = 0}, "strided.interval", "0");
  refuses(strided{.window = 0}, "strided.window", "0");
  refuses(strided{.interval = 4, .phase = 4}, "strided.phase", "4");
  refuses(strided{.phase = -1}, "strided.phase", "-1");
  refuses(strided{.window = 8, .bound = stride_bound::drop_oldest_grid, .limit = 8},
          "strided.limit",
          "8");
  refuses(strided_doubling{.interval = 0}, "strided_doubling.interval", "0");
  refuses(strided_doubling{.window = 0}, "strided_doubling.window", "0");
  refuses(strided_doubling{.phase = 8}, "strided_doubling.phase", "8");
  refuses(strided_doubling{.window = 8, .limit = 7}, "strided_doubling.limit", "7");
  refuses(h2o{.heavy = -1}, "h2o.heavy", "-1");
  refuses(h2o{.recent = -1}, "h2o.recent", "-1");
  refuses(decayed_h2o{.heavy = -3}, "decayed_h2o.heavy", "-3");
  refuses(decayed_h2o{.recent = -3}, "decayed_h2o.recent", "-3");
  refuses(decayed_h2o{.factor = 0.0F}, "decayed_h2o.factor", "0");
  refuses(decayed_h2o{.factor = 1.5F}, "decayed_h2o.factor", "1.5");
  refuses(h2o_per_age{.heavy = -1}, "h2o_per_age.heavy", "-1");
  refuses(h2o_per_age{.recent = -1}, "h2o_per_age.recent", "-1");
  refuses(h2o_mask_simulation{.heavy = -1}, "h2o_mask_simulation.heavy", "-1");
  refuses(h2o_mask_simulation{.recent = 0}, "h2o_mask_simulation.recent", "0");
  refuses(h2o_algorithm_1{.size = -1}, "h2o_algorithm_1.size", "-1");
  refuses(tova{.size = -1}, "tova.size", "-1");
  refuses(tova{.size = 0, .protect_newest = true}, "tova.size", "0");
  refuses(adaptive_release{.keep = -1}, "adaptive_release.keep", "-1");
  refuses(adaptive_release{.keep = 3, .recent = 0, .sinks = 4}, "adaptive_release.sinks", "4");
  refuses(adaptive_release{.keep = 8, .recent = 0, .sinks = -1}, "adaptive_release.sinks", "-1");
  refuses(adaptive_release{.keep = 8, .recent = 5, .sinks = 4}, "adaptive_release.recent", "5");
  refuses(adaptive_release{.keep = 8, .recent = -1, .sinks = 4}, "adaptive_release.recent", "-1");
  refuses(attentive_release{.keep = -1}, "attentive_release.keep", "-1");
  refuses(attentive_release{.keep = 3, .recent = 0, .sinks = 4}, "attentive_release.sinks", "4");
  refuses(attentive_release{.keep = 8, .recent = 5, .sinks = 4}, "attentive_release.recent", "5");
  refuses(attentive_release{.factor = 0.0F}, "attentive_release.factor", "0");
  refuses(attentive_release{.factor = 1.5F}, "attentive_release.factor", "1.5");
  refuses(attentive_release{.epsilon = 0.0F}, "attentive_release.epsilon", "0");
  refuses(key_norm{.size = -1}, "key_norm.size", "-1");
  refuses(key_norm{.size = 2, .recent = 3}, "key_norm.recent", "3");
  refuses(key_norm{.size = 2, .recent = -1}, "key_norm.recent", "-1");
  refuses(random_reservoir{.size = -1}, "random_reservoir.size", "-1");
  refuses(random_victim{.size = -1}, "random_victim.size", "-1");
  refuses(snapkv{.window = 0}, "snapkv.window", "0");
  refuses(snapkv{.size = 32, .window = 32}, "snapkv.size", "32");
  refuses(snapkv{.kernel = 4}, "snapkv.kernel", "4");
  refuses(snapkv{.kernel = -1}, "snapkv.kernel", "-1");
  refuses(sentinel{.close = 2}, "sentinel.open", "-1");
  refuses(sentinel{.open = 2, .close = 2}, "sentinel.close", "2");
  refuses(sentinel{.open = 1, .close = 2, .tail = -1}, "sentinel.tail", "-1");
  refuses(sparse_transformer{.stride = 0}, "sparse_transformer.stride", "0");
  refuses(sparse_transformer{.stride = 4, .summary = 5}, "sparse_transformer.summary", "5");
  refuses(sparse_transformer{.summary = 0}, "sparse_transformer.summary", "0");
  refuses(dynamic_top_k{.count = 0}, "dynamic_top_k.count", "0");
}

TEST_CASE("the smallest sensible numbers are accepted") {
  sliding_window{.size = 0}.validate();
  streaming_llm{.sinks = 0, .window = 0}.validate();
  strided{.interval = 1, .window = 1}.validate();
  h2o{.heavy = 0, .recent = 0}.validate();
  decayed_h2o{.factor = 1.0F}.validate();
  tova{.size = 0}.validate();
  key_norm{.size = 0}.validate();
  snapkv{.size = 2, .window = 1, .kernel = 1}.validate();
  sentinel{.open = 0, .close = 1}.validate();
  dynamic_top_k{.count = 1}.validate();
}

}  // namespace adore::testing
