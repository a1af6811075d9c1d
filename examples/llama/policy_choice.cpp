// SPDX-License-Identifier: Apache-2.0
#include "llama/policy_choice.hpp"

#include <adore/policy_text.hpp>
#include <adore/rebuild_text.hpp>

#include <optional>
#include <stdexcept>
#include <type_traits>

namespace llama_example {

policy_choice read_policy_choice(std::string const& text) {
  policy_choice one{.policy = text, .controller = {}, .rebuild = {}};
  // the last one, since a controller's path may have one, too
  if (auto const plus = one.policy.rfind("+rebuild"); plus != std::string::npos) {
    one.rebuild = adore::rebuild_of(one.policy.substr(plus + 1));
    one.policy.resize(plus);
  }
  if (auto const at = one.policy.find('@'); at != std::string::npos) {
    one.controller = one.policy.substr(at + 1);
    one.policy.resize(at);
  }
  bool takes_scores = false;
  adore::with_policy(one.policy, std::nullopt, [&](auto const& made) {
    takes_scores = adore::scores_tokens<std::remove_cvref_t<decltype(made)>>;
  });
  if (takes_scores && one.controller.empty()) {
    throw std::invalid_argument(one.policy + " ranks by a controller's scores: write " +
                                one.policy + "@FILE, where FILE is a controller (.safetensors)");
  }
  if (!takes_scores && !one.controller.empty()) {
    throw std::invalid_argument(one.policy + " takes no scores: leave '@" + one.controller +
                                "' out");
  }
  return one;
}

}  // namespace llama_example
