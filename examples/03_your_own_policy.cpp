// SPDX-License-Identifier: Apache-2.0
// A policy of your own: one struct of numbers and small functions. This one is the classic of all
// caches, "least recently used": a token is used when a query gives it a good share of its
// attention, and the token that has gone unused for the longest time is released.
//
// Look at what is not there: no registration, no base class, no memory. The cache stores one
// `slot_state` per token and calls the functions; `with_policy` makes the struct from a text.
#include <adore/adore.hpp>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string_view>
#include <vector>

struct least_recently_used {
  adore::index_t size = 512;
  float share = 0.1F;  ///< of a step's attention that counts as a use

  static constexpr char const* name = "least_recently_used";
  static constexpr char const* budget_field = "size";
  static constexpr adore::scope default_scope = adore::scope::kv_head;

  struct slot_state {
    adore::position_t last_use = 0;
  };

  ADORE_HOST_DEVICE constexpr adore::index_t budget() const noexcept { return size; }
  ADORE_HOST_DEVICE constexpr void observe(slot_state& state,
                                           adore::slot_view slot,
                                           adore::lane_view lane,
                                           float weight,
                                           adore::index_t) const noexcept {
    bool const arrives = slot.position == lane.newest;
    if (arrives || weight >= share) state.last_use = lane.newest;
  }
  ADORE_HOST_DEVICE constexpr float keep_priority(adore::slot_view,
                                                  adore::lane_view,
                                                  slot_state const& state) const noexcept {
    return static_cast<float>(state.last_use);  // the oldest of equals goes first
  }
  constexpr void validate() const {
    adore::require_field(size >= 0, "least_recently_used.size", size, "must not be negative");
    adore::require_field(
        share > 0.0F, "least_recently_used.share", share, "must be larger than zero");
  }

  // for the text "least_recently_used(size=8,share=0.2)"
  static constexpr least_recently_used of_budget(adore::index_t budget) { return {.size = budget}; }
  template <class Self, class Visit>
  static constexpr void fields(Self& self, Visit&& visit) {
    visit("size", self.size);
    visit("share", self.share);
  }
};

// Ask here, next to the policy, whether the library finds all that it looks for. Without `validate`
// the first line says: a policy needs 'void validate() const', which throws std::invalid_argument
// naming field and value.
static_assert(adore::observes_attention<adore::checked_policy<least_recently_used>::type>);
static_assert(adore::described<least_recently_used>);

/// Token 2 is a name, asked for by every sixth token up to token 40. Is it in the cache after each?
template <class Policy>
std::vector<bool> remembers_the_name(Policy const& policy) {
  adore::kv_cache cache{adore::host_store{{.slots = policy.budget() + 1, .channels = 2}}, policy};
  cache.open(0);
  std::vector<bool> remembered;
  for (int token = 0; token < 60; ++token) {
    bool const asks = token % 6 == 0 && token <= 40;
    std::vector<float> const query{asks ? 4.0F : 0.0F, 0.0F}, key{token == 2 ? 4.0F : 0.0F, 0.0F};
    std::vector<float> output(2);
    cache.begin_step();
    cache.append(0, {key.data(), 1, 1, 2}, {key.data(), 1, 1, 2});
    cache.attend(0, {query.data(), 1, 1, 2}, {output.data(), 1, 1, 2});
    cache.end_step();
    auto const kept = cache.kept(0);
    remembered.push_back(std::find(kept.begin(), kept.end(), 2) != kept.end());
  }
  return remembered;
}

int main() {
  using policies = adore::policy_list<least_recently_used, adore::sliding_window>;
  std::vector<std::vector<bool>> results;
  for (std::string_view const text : {"least_recently_used(share=0.2)", "sliding_window"}) {
    adore::with_policy(text, /*budget*/ 8, policies{}, [&](auto const& policy) {
      results.push_back(remembers_the_name(policy));
      std::printf("%s\n  token 2 is there (+) or not (-): ", adore::to_text(policy).c_str());
      for (bool const there : results.back()) std::printf("%c", there ? '+' : '-');
      std::printf("\n");
    });
  }
  std::string refusal;
  try {
    adore::with_policy("least_recently_used(share=-1)", 8, policies{}, [](auto const&) {});
  } catch (std::invalid_argument const& error) {
    refusal = error.what();
  }
  std::printf("share=-1 is refused: %s\n", refusal.c_str());

  bool const right = results[0][40] && !results[0][59] && !results[1][40] &&
                     refusal.find("least_recently_used.share") != std::string::npos;
  if (!right) std::puts("wrong: the name should be remembered as long as it is asked for");
  return right ? 0 : 1;
}
