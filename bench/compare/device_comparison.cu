// SPDX-License-Identifier: Apache-2.0
// Read `match::play` first. What comparison.cpp does on the host, with no host in between: a step
// is one graph, and the sums stay on the device until the text is over.
#include "device.hpp"
#include "device_contestant.cuh"
#include "device_measures.cuh"
#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/device_model.cuh"
#include "llama/gpu/handles.cuh"
#include "measures.hpp"
#include <adore/gpu/device_buffer.cuh>
#include <adore/policy_text.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace comparison {

namespace {

using adore::gpu::check;
using adore::gpu::device_buffer;
using tokens_of = std::vector<std::vector<std::int32_t>>;
namespace on_device = llama_example::gpu;

constexpr int steps_between_reports = 16;  ///< the host waits for the device only then

struct competitor {
  contestant asked;
  std::unique_ptr<on_device::device_cache<float>> cache{};
  adore::index_t measured_from = 0;     ///< kept weight counts from this position
  device_buffer<double> kept_weight{};  // [row, kv_head], summed over layers and steps
  std::size_t live_bytes = 0;
  double tokens_per_second = 0.0;
  adore::rebuild_counts cost{};
};

class match {
 public:
  match(request const& asked, llama_example::model const& weights, tokens_of const& tokens)
      : asked_(asked), weights_(weights), tokens_(tokens) {
    for (contestant const& entry : asked.contestants) enter(entry);
    std::vector<on_device::device_cache<float>*> groups;
    for (competitor const& each : field_) groups.push_back(each.cache.get());
    engine_ = std::make_unique<on_device::device_engine<float>>(
        weights_, groups, on_device::device_engine_options{.watch = watch()});
    for (competitor& each : field_) {
      for (int row = 0; row < asked_.sequences; ++row) {
        each.cache->open_async(stream(), row, static_cast<std::uint64_t>(row));
      }
      each.kept_weight.fill_async(0, stream());
    }
  }

  std::vector<result> play(progress const& report) {
    auto const rows = static_cast<std::size_t>(engine_->rows());
    device_buffer<std::int32_t> const text(text_of_batch());
    device_buffer<logits_summary> summaries(rows);
    device_buffer<prediction_sums> sums(rows);
    sums.fill_async(0, stream());
    for (int t = 0; t < asked_.tokens; ++t) {
      std::int32_t const* const now = text.data() + static_cast<std::size_t>(t) * rows;
      check(cudaMemcpyAsync(
          engine_->ids(), now, rows * sizeof(std::int32_t), cudaMemcpyDeviceToDevice, stream()));
      engine_->step_async();
      if (t + 1 < asked_.tokens) {  // the last one's successor is not known
        add_predictions_async(stream(),
                              engine_->logits(),
                              now + rows,
                              engine_->rows(),
                              weights_.numbers().vocabulary,
                              asked_.sequences,
                              2 * (t + 1) >= asked_.tokens,
                              summaries.data(),
                              sums.data());
      }
      if ((t + 1) % steps_between_reports == 0 || t + 1 == asked_.tokens) {
        check(cudaStreamSynchronize(stream()));
        report(t + 1, asked_.tokens);
      }
    }
    auto const by_row = sums.to_host(stream());
    for (competitor& each : field_) each.live_bytes = each.cache->live_bytes(stream());
    for (competitor& each : field_) each.cost = each.cache->rebuild_cost(stream());
    for (competitor& each : field_) time(each);
    std::vector<result> results;
    for (competitor const& each : field_) results.push_back(summary(each, by_row));
    return results;
  }

 private:
  cudaStream_t stream() const { return engine_->stream(); }

  void enter(contestant const& entry) {
    competitor each{.asked = entry};
    bool exports = field_.empty();  // full attention, which the others are measured against
    adore::with_policy(entry.policy, entry.budget, [&](auto const& policy) {
      using P = std::remove_cvref_t<decltype(policy)>;
      exports = exports || adore::masks_attention<P> || adore::limits_attention<P>;
    });
    each.cache = make_device_contestant(
        entry, asked_, weights_, asked_.sequences, asked_.tokens + timed_steps, exports);
    each.measured_from =
        each.cache->nominal_budget() == adore::unbounded ? 0 : each.cache->nominal_budget();
    each.kept_weight = device_buffer<double>(static_cast<std::size_t>(asked_.sequences) *
                                             static_cast<std::size_t>(weights_.numbers().kv_heads));
    field_.push_back(std::move(each));
  }

  /// Who releases tokens is looked at before its decision; who hides them, after its attention.
  on_device::attention_watch watch() {
    auto const add = [this](cudaStream_t stream, competitor& each, int layer) {
      bool const hides = each.cache->hides_tokens();
      add_kept_weight_async(stream,
                            field_.front().cache->weights(layer),
                            each.cache->positions(layer),
                            hides ? each.cache->weights(layer) : on_device::layer_weights_view{},
                            each.measured_from,
                            each.kept_weight.data());
    };
    auto const looked_at_after = [this](std::size_t group) {
      return group == 0 || field_[group].cache->hides_tokens();
    };
    return {.before =
                [=, this](cudaStream_t stream, std::size_t group, int layer) {
                  if (!looked_at_after(group)) add(stream, field_[group], layer);
                },
            .after =
                [=, this](cudaStream_t stream, std::size_t group, int layer) {
                  if (looked_at_after(group)) add(stream, field_[group], layer);
                }};
  }

  /// [token, row of the batch]
  std::vector<std::int32_t> text_of_batch() const {
    std::vector<std::int32_t> text;
    for (int t = 0; t < asked_.tokens; ++t) {
      for (std::size_t group = 0; group < field_.size(); ++group) {
        for (auto const& sequence : tokens_) text.push_back(sequence[static_cast<std::size_t>(t)]);
      }
    }
    return text;
  }

  /// A few steps of the first row alone, in the state in which the text left it.
  void time(competitor& each) {
    if (each.cache->tokens_without_room(stream()) > 0) {
      throw std::logic_error(each.asked.policy + " ran out of slots");
    }
    auto const alone = each.cache->alone(stream(), 0);
    if (alone == nullptr) return;  // it cannot be taken out of its batch
    on_device::device_engine<float> engine(weights_, {alone.get()});
    auto const begin = on_device::make_event(cudaEventDefault);
    auto const end = on_device::make_event(cudaEventDefault);
    std::vector<float> milliseconds;
    for (std::size_t i = 0; i < timed_steps; ++i) {
      engine.set_ids({&tokens_[0][i % tokens_[0].size()], 1});
      check(cudaEventRecord(begin.get(), engine.stream()));
      engine.step_async();
      check(cudaEventRecord(end.get(), engine.stream()));
      check(cudaEventSynchronize(end.get()));
      float elapsed = 0.0F;
      check(cudaEventElapsedTime(&elapsed, begin.get(), end.get()));
      milliseconds.push_back(elapsed);
    }
    std::nth_element(
        milliseconds.begin(), milliseconds.begin() + timed_steps / 2, milliseconds.end());
    each.tokens_per_second = 1e3 / static_cast<double>(milliseconds[timed_steps / 2]);
  }

  result summary(competitor const& each, std::vector<prediction_sums> const& by_row) const {
    auto const sequences = static_cast<std::size_t>(asked_.sequences);
    auto const group = static_cast<std::size_t>(&each - field_.data());
    measures sums;
    for (std::size_t row = group * sequences; row < (group + 1) * sequences; ++row) {
      sums.negative_log_likelihood += by_row[row].negative_log_likelihood;
      sums.second_half += by_row[row].second_half;
      sums.kl += by_row[row].kl;
      sums.agreements += static_cast<long>(by_row[row].agreements);
    }
    // token t predicts token t + 1, which is in the second half if 2 (t + 1) >= tokens
    sums.predictions = long{asked_.sequences} * (asked_.tokens - 1);
    sums.second_half_predictions =
        long{asked_.sequences} * (asked_.tokens - (asked_.tokens + 1) / 2);
    auto const kept = each.kept_weight.to_host(stream());
    sums.kept_weight = std::accumulate(kept.begin(), kept.end(), 0.0);
    sums.kept_weight_samples = static_cast<long>(kept.size()) * weights_.numbers().layers *
                               std::max(0, asked_.tokens - each.measured_from);

    result line;
    line.policy = each.asked.label;
    line.rebuilt = each.asked.rebuild.count;
    auto const tokens = static_cast<double>(asked_.tokens) * asked_.sequences;
    line.computed_per_token = static_cast<double>(each.cost.computed) / tokens;
    line.deferred_per_token = static_cast<double>(each.cost.deferred) / tokens;
    line.settings = each.cache->policy();
    if (each.cache->nominal_budget() != adore::unbounded) {
      line.budget = each.cache->nominal_budget();
    }
    line.reach = each.cache->reach();
    line.tokens = asked_.tokens;
    line.perplexity = sums.perplexity();
    line.perplexity_second_half = sums.perplexity_second_half();
    line.kl = sums.mean_kl();
    line.top1 = sums.top1();
    line.kept_weight = sums.mean_kept_weight();
    line.kv_bytes = each.cache->allocated_bytes();
    line.kv_bytes_live = each.live_bytes;
    line.tokens_per_second = each.tokens_per_second;
    return line;
  }

  request const& asked_;
  on_device::device_model<float> weights_;
  tokens_of const& tokens_;
  std::vector<competitor> field_;
  std::unique_ptr<on_device::device_engine<float>> engine_;
};

}  // namespace

std::optional<std::string> why_no_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    return "there is no CUDA device";
  }
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major < 9) {
    return std::string("the kernels need compute capability 9.0, ") + properties.name + " has " +
           std::to_string(properties.major) + "." + std::to_string(properties.minor);
  }
  return std::nullopt;
}

std::vector<result> run_on_device(request const& asked,
                                  llama_example::model const& weights,
                                  tokens_of const& tokens,
                                  progress const& report) {
  for (auto const& sequence : tokens) {
    for (std::int32_t const id : sequence) {
      if (id < 0 || id >= weights.vocabulary) {
        throw std::invalid_argument("token id = " + std::to_string(id) + ": the model has " +
                                    std::to_string(weights.vocabulary) + " tokens");
      }
    }
  }
  return match(asked, weights, tokens).play(report);
}

}  // namespace comparison
