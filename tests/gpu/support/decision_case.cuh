// SPDX-License-Identifier: Apache-2.0
// Hundreds of decisions of a policy on the device and on the host, from the same tokens and the
// same weights: dyadic ones, so that sums are exact and the kept sets must be the same.
#pragma once

#include "agreement.cuh"
#include <adore/concepts.hpp>
#include <adore/eviction/ledger.hpp>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/decision_stages.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/token_ids.cuh>
#include <adore/gpu/token_scores.cuh>
#include <adore/gpu/unobserved_step.cuh>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace adore::testing {

ADORE_HOST_DEVICE inline std::uint32_t hash_of(std::uint32_t salt,
                                               index_t layer,
                                               index_t row,
                                               index_t head,
                                               position_t query,
                                               position_t key) {
  std::uint32_t x = salt;
  for (int const part : {layer, row, head, query, key}) {
    x = (x ^ static_cast<std::uint32_t>(part)) * 0x9E3779B1U;
    x ^= x >> 15U;
  }
  return x;
}
/// A weight in {0, 1/64, ..., 15/64} that depends on who attends whom.
ADORE_HOST_DEVICE inline float dyadic_weight(std::uint32_t salt,
                                             index_t layer,
                                             index_t row,
                                             index_t head,
                                             position_t query,
                                             position_t key) {
  return static_cast<float>(hash_of(salt, layer, row, head, query, key) % 16U) / 64.0F;
}
ADORE_HOST_DEVICE inline float dyadic_norm(
    std::uint32_t salt, index_t layer, index_t row, index_t head, position_t position) {
  return 64.0F * dyadic_weight(salt + 1, layer, row, head, position, position);
}

/// A controller's logit in {-2, -2 + 1/16, ..., 31/16}.
inline float logit_of(std::uint32_t salt, index_t row, position_t position) {
  return static_cast<float>(hash_of(salt + 2, 0, row, 0, position, position) % 64U) / 16.0F - 2.0F;
}

template <class P>
__global__ void give_weights(
    gpu::ledger_view<P> ledger, std::uint32_t salt, index_t layer, float* weights, float* norms) {
  auto const head = static_cast<index_t>(blockIdx.x);
  auto const row = static_cast<index_t>(blockIdx.y);
  index_t const lane = ledger.lane(row, layer, head);
  position_t const next = ledger.rows[row].next;
  index_t const count = ledger.rows[row].count;
  for (index_t j = 0; j < count; ++j) {
    index_t const query = (row * ledger.kv_heads + head) * ledger.max_new + j;
    if (threadIdx.x == 0) norms[query] = dyadic_norm(salt, layer, row, head, next + j);
    for (auto s = static_cast<index_t>(threadIdx.x); s < ledger.slots;
         s += static_cast<index_t>(blockDim.x)) {
      position_t const p = ledger.positions[ledger.cell(lane) + s];
      bool const sees = p >= 0 && p <= next + j;
      weights[static_cast<std::int64_t>(query) * ledger.stride + s] =
          sees ? dyadic_weight(salt, layer, row, head, next + j, p) : 0.0F;
    }
  }
}

struct decide_case {
  scope reach = scope::kv_head;
  index_t max_new = 1;
  std::uint32_t salt = 1;
  bool drafts = false;  ///< only a part of each step's tokens is accepted
  int steps = 130;
  index_t budget = 40;     ///< slots, besides those of new tokens, if the policy has a budget
  bool by_stages = false;  ///< observation, selection and release are launches of their own
  int observed_every = 1;  ///< the policy does not observe other steps
};

/// One layer's decision, in one launch or in three.
template <class P>
class decision_in_parts {
 public:
  decision_in_parts(gpu::ledger_view<P> const& ledger, bool by_stages)
      : ledger_(ledger), by_stages_(by_stages), tokens_(by_stages ? lanes() * slots() : 0) {
    if (by_stages) counts_ = gpu::device_buffer<index_t>(lanes());
  }
  void decide_async(cudaStream_t stream,
                    P const& policy,
                    index_t layer,
                    gpu::decide_args const& args,
                    bool observed) {
    if constexpr (observes_attention<P>) {
      if (!observed) {
        decide_on(stream, gpu::unobserved_step(ledger_), gpu::unobserved{policy}, layer, args);
        return;
      }
    }
    decide_on(stream, ledger_, policy, layer, args);
  }

 private:
  std::size_t lanes() const {
    return static_cast<std::size_t>(ledger_.row_count * ledger_.lanes_per_row());
  }
  std::size_t slots() const { return static_cast<std::size_t>(ledger_.slots); }

  template <class Q>
  void decide_on(cudaStream_t stream,
                 gpu::ledger_view<Q> const& ledger,
                 Q const& policy,
                 index_t layer,
                 gpu::decide_args const& args) {
    if (!by_stages_) {
      gpu::decide_async(stream, ledger, policy, layer, args);
      return;
    }
    gpu::victims_view const victims{tokens_.data(), counts_.data(), ledger.slots};
    gpu::observe_async(stream, ledger, policy, layer, args);
    gpu::select_async(stream, ledger, policy, layer, args, victims);
    gpu::release_async(stream, ledger, policy, layer, args, victims);
  }

  gpu::ledger_view<P> ledger_;
  bool by_stages_;
  gpu::device_buffer<gpu::departure> tokens_;  // [lane, slot]
  gpu::device_buffer<index_t> counts_;         // [lane]
};

template <class P>
agreement run_both(P const& policy, decide_case const& c) {
  constexpr index_t rows = 3, layers = 2, heads = 2;
  index_t const budget_slots = policy.budget() == unbounded ? c.steps * c.max_new : c.budget;
  kv_shape const shape{rows, layers, heads, budget_slots + c.max_new, 64};
  cudaStream_t const stream = nullptr;
  gpu::device_ledger<P> device(policy, shape, c.reach, c.max_new, 1 << 16);
  ledger<P> host(policy, shape, c.reach, c.max_new);
  auto const& view = device.view();
  auto const queries = static_cast<std::size_t>(rows * heads * c.max_new);
  auto const layer_weights = queries * static_cast<std::size_t>(view.stride);
  gpu::device_buffer<float> weights(layers * layer_weights), norms(layers * queries);
  weights.fill_async(0, stream);  // what lies behind the slots is read, too
  gpu::device_buffer<index_t> accepted_on_device(rows);
  gpu::device_buffer<index_t> ids_on_device(static_cast<std::size_t>(rows * c.max_new));
  [[maybe_unused]] gpu::device_hearing<P> hearing(view);
  index_t const longest = c.steps * c.max_new;
  std::vector<float> logits;  // [row, position]
  for (index_t i = 0; i < (scores_tokens<P> ? rows * longest : 0); ++i) {
    logits.push_back(logit_of(c.salt, i / longest, i % longest));
  }
  gpu::device_buffer<float> const logits_on_device(logits);
  std::vector<index_t> ids(ids_on_device.size());  // [row, max_new]
  std::vector<index_t> counts(rows, 0), told;      // as the device has been told
  decision_in_parts<P> decision(view, c.by_stages);
  agreement agrees;
  std::uint32_t random = c.salt;
  auto const draw = [&random](std::uint32_t below) {
    random = random * 1664525U + 1013904223U;
    return (random >> 8U) % below;
  };
  std::size_t host_releases = 0;
  for (int step = 0; step < c.steps; ++step) {
    for (index_t row = 0; row < rows; ++row) {
      if (step == 7 * row) {  // ragged: rows begin at different times
        told.clear();
        device.open_async(stream, row, 77U + static_cast<unsigned>(row));
        host.open(row, 77U + static_cast<unsigned>(row));
      }
      bool const open = step >= 7 * row;
      counts[static_cast<std::size_t>(row)] =
          !open ? 0
                : static_cast<index_t>(
                      c.max_new == 1 ? 1 : 1 + draw(static_cast<std::uint32_t>(c.max_new)));
      if (open && step % 11 == 10) counts[static_cast<std::size_t>(row)] = row == 1 ? 0 : 1;
    }
    if (told != counts) device.set_counts(stream, told = counts);
    std::vector<index_t> accepted = counts;
    if (c.drafts) {
      for (index_t& a : accepted) a = static_cast<index_t>(draw(static_cast<std::uint32_t>(a + 1)));
    }
    if (c.drafts) accepted_on_device.copy_from_async(accepted, stream);
    for (index_t& id : ids) id = static_cast<index_t>(draw(5));
    if (reads_tokens<P>) ids_on_device.copy_from_async(ids, stream);

    // device
    if constexpr (scores_tokens<P>) {
      gpu::scores_view const scores{logits_on_device.data(), 1, longest};
      gpu::give_scores_async(stream, view, policy, scores, /*only_new=*/true);
    }
    if constexpr (reads_tokens<P>) hearing.hear_async(stream, view, policy, ids_on_device.data());
    for (index_t layer = 0; layer < layers; ++layer) {
      give_weights<P><<<dim3(heads, rows), 64, 0, stream>>>(
          view,
          c.salt,
          layer,
          weights.data() + static_cast<std::size_t>(layer) * layer_weights,
          norms.data() + static_cast<std::size_t>(layer) * queries);
      gpu::check(cudaGetLastError());
    }
    if constexpr (reads_tokens<P>) {
      if (c.drafts) {
        hearing.hear_accepted_async(
            stream, view, policy, ids_on_device.data(), accepted_on_device.data());
      }
    }
    bool const one_decision = c.reach == scope::model;  // it ends the step, too
    bool const observed = step % c.observed_every == 0;
    index_t const decisions = one_decision ? 1 : layers;
    for (index_t layer = 0; layer < decisions; ++layer) {
      decision.decide_async(
          stream,
          policy,
          layer,
          {.weights = weights.data() + static_cast<std::size_t>(layer) * layer_weights,
           .key_norms = norms.data() + static_cast<std::size_t>(layer) * queries,
           .accepted = c.drafts ? accepted_on_device.data() : nullptr,
           .advances = one_decision},
          observed);
    }
    if (!one_decision) {
      gpu::advance_async(stream, view, c.drafts ? accepted_on_device.data() : nullptr);
    }

    // host
    host.forget_released();
    for (index_t row = 0; row < rows; ++row) {
      index_t const count = counts[static_cast<std::size_t>(row)];
      index_t const stay = accepted[static_cast<std::size_t>(row)];
      if (count == 0) continue;
      position_t const next = host.next_position(row);
      for (index_t in_row = 0; in_row < host.lanes_per_row(); ++in_row) {
        index_t const lane = row * host.lanes_per_row() + in_row;
        host.place(lane, count);
        auto const slots = host.slots_of(lane);
        if constexpr (reads_tokens<P>) {
          for (index_t j = 0; j < stay; ++j) {
            index_t const slot = host.new_slots(lane)[static_cast<std::size_t>(j)];
            policy.hear(slots.state(slot),
                        *slots.lane_state,
                        slots.view(slot),
                        ids[static_cast<std::size_t>(row * c.max_new + j)]);
            slots.rotary[slot] =
                gpu::shown_slot(policy, next + j, slots.state(slot)).rotary_position;
          }
        }
        if constexpr (scores_tokens<P>) {
          for (index_t j = 0; j < count; ++j) {
            policy.score(slots.state(host.new_slots(lane)[static_cast<std::size_t>(j)]),
                         logit_of(c.salt, row, next + j));
          }
        }
        lane_extent const extent = host.extent_of(lane);
        std::vector<float> combined(static_cast<std::size_t>(shape.slots), 0.0F);
        auto const each = [&](auto&& visit) {
          for (index_t l = extent.first_layer; l < extent.end_layer; ++l) {
            for (index_t h = extent.first_head; h < extent.end_head; ++h) visit(l, h);
          }
        };
        for (index_t j = 0; j < stay; ++j) {
          float const factor = query_weight_of(policy, stay - 1 - j);
          for (index_t s = 0; s < shape.slots; ++s) {
            position_t const p = slots.positions[s];
            if (p < 0 || p > next + j) continue;
            each([&](index_t l, index_t h) {
              combined[static_cast<std::size_t>(s)] +=
                  factor * dyadic_weight(c.salt, l, row, h, next + j, p);
            });
          }
        }
        if constexpr (scores_keys<P>) {
          for (index_t j = 0; j < count; ++j) {
            each([&](index_t l, index_t h) {
              policy.score_key(slots.state(host.new_slots(lane)[static_cast<std::size_t>(j)]),
                               dyadic_norm(c.salt, l, row, h, next + j));
            });
          }
        }
        host.commit(lane, stay, observes_attention<P> && observed ? combined.data() : nullptr);
      }
      host.advance(row, stay);
    }
    host_releases += host.released().size();
    if (int const every = c.steps / 26; step % every == every - 1) {
      for (index_t row = 0; row < rows; ++row) {
        if (!host.is_open(row)) continue;
        auto copy = on_host(device, stream, row);
        compare_kept(copy, host, row, agrees);
        if constexpr (marks_tokens<P> || reads_tokens<P>) compare_states(copy, host, row, agrees);
      }
    }
  }
  // the ring tells the host the same
  auto const entries = device.released_since(stream, 0);
  CHECK(entries.size() == host_releases);
  for (std::size_t i = 0; i < entries.size(); ++i) CHECK(entries[i].number == i + 1);
  CHECK(device.tokens_without_room(stream) == 0);
  return agrees;
}

/// @param steps  fewer where a step is dear
template <class P>
void check_everywhere(P const& policy, bool exact = true, int steps = 130) {
  int differences = 0, lanes = 0;
  for (scope const reach : {scope::kv_head, scope::layer, scope::model}) {
    for (decide_case c : {decide_case{.max_new = 1},
                          decide_case{.max_new = 1, .salt = 2},
                          decide_case{.max_new = 6, .salt = 3},
                          decide_case{.max_new = 6, .salt = 4, .drafts = true}}) {
      c.reach = reach;
      c.steps = steps;
      CAPTURE(word_of(reach));
      CAPTURE(c.max_new);
      CAPTURE(c.salt);
      auto const agrees = run_both(policy, c);
      CHECK(agrees.lanes > 0);
      CHECK(agrees.other_states == 0);
      CHECK(agrees.worse_than_near_ties == 0);
      if (exact) CHECK(agrees.differences == 0);
      differences += agrees.differences;
      lanes += agrees.lanes;
    }
  }
  MESSAGE(differences, " near-ties decided otherwise in ", lanes, " kept sets");
}

}  // namespace adore::testing
