// SPDX-License-Identifier: Apache-2.0
// An engine keeps its own attention kernel. A policy is a struct of numbers and of functions that
// run on the device, so there are two ways to give the kernel one:
//
//   1. the kernel writes its weights, and `decide_async` does the rest with the library's books
//      (`weights_async` forms them from q, K and the log-sum-exp if the kernel leaves no weights);
//   2. the policy is a template argument of the kernel, which calls it where the weights are still
//      in registers; the books are the engine's own.
//
// Look at how little the second way needs, and that both keep the same tokens, whichever policy
// that observes attention you name in `main`. A .cu that includes decide.cuh takes 1.4 s to compile
// (nvcc 13.0, -std=c++20 -arch=sm_90; an empty one 0.8 s), this example 4 s.
#include <adore/gpu/append.cuh>
#include <adore/gpu/decide.cuh>
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/device_ledger.cuh>
#include <adore/gpu/device_store.cuh>
#include <adore/order_key.hpp>
#include <adore/policies/h2o.hpp>
#include <adore/policies/tova.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

using adore::index_t;
using adore::position_t;
using adore::gpu::device_buffer;
using view = adore::kv_view<float>;
using step_tokens = adore::token_view<float const>;  // [row, head, channel]

constexpr index_t rows = 2, heads = 4, channels = 64, budget = 32, slots = budget + 1, steps = 100;
constexpr index_t lanes = rows * heads;
constexpr int threads = 64;  // of a lane's block: thread t has slot t, and channel t of the output

/// The engine's attention of one query in one lane. Returns the weight of this thread's slot.
__device__ __noinline__ float attend(
    float const* q, view const& keys, view const& values, bool there, float* out) {
  __shared__ float logits[threads];
  index_t const row = static_cast<index_t>(blockIdx.y), head = static_cast<index_t>(blockIdx.x);
  auto const t = static_cast<index_t>(threadIdx.x);
  float logit = adore::keep_never;
  if (there) {
    logit = 0.0F;
    for (index_t c = 0; c < channels; ++c) logit += q[c] * keys(row, head, t)[c] / 8.0F;
  }
  logits[t] = logit;
  __syncthreads();
  float highest = adore::keep_never, sum = 0.0F, x = 0.0F;
  for (float const of_slot : logits) highest = fmaxf(highest, of_slot);
  for (index_t s = 0; s < slots; ++s) {
    if (logits[s] == adore::keep_never) continue;  // what lies in a free slot may be no number
    sum += expf(logits[s] - highest);
    x += expf(logits[s] - highest) * values(row, head, s)[t];
  }
  out[t] = x / sum;
  return expf(logit - highest) / sum;
}

// ------------------------------------------------------------------ 1. the library's books

/// Grid: (head, row). The ledger says which token is in a slot; `append_async` has put K and V
/// there.
template <adore::eviction_policy P>
__global__ void attention(adore::gpu::ledger_view<P> const ledger,
                          step_tokens const q,
                          view const keys,
                          view const values,
                          float* weights,  // [lane, stride]
                          float* out) {
  auto const row = static_cast<index_t>(blockIdx.y), head = static_cast<index_t>(blockIdx.x);
  index_t const lane = ledger.lane(row, 0, head);
  auto const t = static_cast<index_t>(threadIdx.x);
  position_t const p = t < slots ? ledger.positions[ledger.cell(lane) + t] : adore::no_position;
  bool const there = p >= 0 && p <= ledger.rows[row].next;  // later ones are reserved slots
  float const weight = attend(q(row, head), keys, values, there, out + lane * channels);
  if (t < slots) weights[ledger.cell(lane) + t] = weight;
}

// ------------------------------------------------------------------ 2. the engine's own books

template <adore::eviction_policy P>
struct own_books {
  position_t* positions;            // [lane, slot]
  adore::slot_state_of<P>* states;  // [lane, slot]
  index_t* free_slots;              // [lane] where the next token goes
};

/// Grid: (head, row). Appends, attends, observes and releases; token `now` is the newest. There
/// must be candidates for release whenever a lane is full: `decide_async` could do without.
template <adore::eviction_policy P>
__global__ void attention_with_policy(P const policy,
                                      own_books<P> const books,
                                      position_t const now,
                                      step_tokens const q,
                                      step_tokens const k,
                                      step_tokens const v,
                                      view const keys,
                                      view const values,
                                      float* out) {
  __shared__ std::uint64_t order[threads];
  auto const row = static_cast<index_t>(blockIdx.y), head = static_cast<index_t>(blockIdx.x);
  index_t const lane = row * heads + head;
  auto const t = static_cast<index_t>(threadIdx.x);
  index_t const newcomer = books.free_slots[lane];
  keys(row, head, newcomer)[t] = k(row, head)[t];
  values(row, head, newcomer)[t] = v(row, head)[t];
  __syncthreads();  // the slot's thread reads what all have written
  position_t p = t < slots ? books.positions[lane * slots + t] : adore::no_position;
  if (t == newcomer) p = now;
  float const weight = attend(q(row, head), keys, values, p >= 0, out + lane * channels);

  adore::lane_view const here{.newest = now,
                              .occupied = min(now + 1, slots),
                              .budget = policy.budget(),
                              .layer = 0,
                              .kv_head = head,
                              .seed = 0};
  order[t] = ~std::uint64_t{0};  // not to be released
  if (p >= 0) {
    adore::slot_view const slot{p, p};
    auto state = t == newcomer ? adore::slot_state_of<P>{} : books.states[lane * slots + t];
    policy.observe(state, slot, here, weight, 1);
    adore::candidate_range const candidates = adore::candidates_of(policy, here);
    if (p >= candidates.first && p <= candidates.last) {
      order[t] = adore::order_key(adore::priority_of(policy, slot, here, state, {}), p);
    }
    books.states[lane * slots + t] = state;
    books.positions[lane * slots + t] = p;
  }
  __syncthreads();
  if (t > 0) return;
  index_t next = now + 1;  // a slot that was never used
  if (here.occupied > here.budget) {
    next = 0;
    for (index_t s = 1; s < slots; ++s) next = order[s] < order[next] ? s : next;
    books.positions[lane * slots + next] = adore::no_position;
  }
  books.free_slots[lane] = next;
}

// ------------------------------------------------------------------ both

/// Random numbers [step, row, head, channel].
std::vector<float> random_numbers(unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<std::size_t>(steps * lanes * channels));
  for (float& x : numbers) x = normal(engine);
  return numbers;
}

/// Runs both engines on the same tokens; true if they keep the same ones and put out the same.
template <adore::eviction_policy P>
bool agree(cudaStream_t stream, P const& policy) {
  device_buffer<float> const q(random_numbers(1)), k(random_numbers(2)), v(random_numbers(3));
  adore::kv_shape const shape{rows, 1, heads, slots, channels};
  adore::gpu::device_store<float> store(shape), own_store(shape);
  adore::gpu::device_ledger<P> ledger(policy, shape, adore::scope::kv_head);
  device_buffer<float> weights(static_cast<std::size_t>(lanes * ledger.view().stride));
  device_buffer<float> out(static_cast<std::size_t>(lanes * channels)), own_out(out.size());
  device_buffer<position_t> positions(static_cast<std::size_t>(lanes * slots));
  device_buffer<adore::slot_state_of<P>> states(positions.size());
  device_buffer<index_t> free_slots(static_cast<std::size_t>(lanes));
  positions.fill_async(0xFF, stream);  // no_position
  free_slots.fill_async(0, stream);
  own_books<P> const own{positions.data(), states.data(), free_slots.data()};
  for (index_t row = 0; row < rows; ++row) ledger.open_async(stream, row);

  dim3 const grid(heads, rows);
  for (position_t now = 0; now < steps; ++now) {
    auto const of_step = [now](device_buffer<float> const& all) {
      return step_tokens{all.data() + now * lanes * channels, rows, heads, channels};
    };
    adore::gpu::append_async(
        stream, ledger.view(), 0, store.keys(0), store.values(0), of_step(k), of_step(v));
    attention<<<grid, threads, 0, stream>>>(
        ledger.view(), of_step(q), store.keys(0), store.values(0), weights.data(), out.data());
    adore::gpu::check(cudaGetLastError());
    adore::gpu::decide_async(stream, ledger.view(), policy, 0, {.weights = weights.data()});
    adore::gpu::advance_async(stream, ledger.view());

    attention_with_policy<<<grid, threads, 0, stream>>>(policy,
                                                        own,
                                                        now,
                                                        of_step(q),
                                                        of_step(k),
                                                        of_step(v),
                                                        own_store.keys(0),
                                                        own_store.values(0),
                                                        own_out.data());
    adore::gpu::check(cudaGetLastError());
  }

  std::vector<position_t> const own_positions = positions.to_host(stream);
  bool same = true;
  for (index_t lane = 0; lane < lanes; ++lane) {
    std::vector<position_t> const kept = ledger.kept(stream, lane);
    auto const first = own_positions.begin() + lane * slots;
    std::vector<position_t> own_kept(first, first + slots);
    std::erase(own_kept, adore::no_position);
    std::sort(own_kept.begin(), own_kept.end());
    same = same && kept == own_kept && kept.size() == static_cast<std::size_t>(budget);
    if (lane == 0) {
      std::printf("%s keeps in lane 0:", P::name);
      for (position_t const position : own_kept) std::printf(" %d", position);
      std::printf("\n");
    }
  }
  // both give a newcomer its victim's slot, so that even the order of the sums is the same
  return same && out.to_host(stream) == own_out.to_host(stream);
}

int main() {
  if (int devices = 0; cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU here");
    return 77;
  }
  cudaStream_t stream = nullptr;
  adore::gpu::check(cudaStreamCreate(&stream));
  bool right = agree(stream, adore::h2o{.heavy = 16, .recent = 16});
  right = agree(stream, adore::tova{.size = budget}) && right;
  adore::gpu::check(cudaStreamDestroy(stream));
  if (!right) std::puts("wrong: both ways should have kept the same tokens");
  return right ? 0 : 1;
}
