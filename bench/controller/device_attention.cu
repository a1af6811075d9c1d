// SPDX-License-Identifier: Apache-2.0
// Read `device_attention::show` first: the crops are rows of one batch, streamed token by token
// under full attention; what `crop_labels` adds up on the host is added up on the device.
#include "device_attention.hpp"
#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/device_model.cuh"
#include <adore/gpu/device_buffer.cuh>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace controller_labels {

namespace {

using adore::gpu::check;
using adore::gpu::device_buffer;
namespace on_device = llama_example::gpu;

constexpr int threads = 256;

/// The sums of `crop_labels`, of all rows; device memory.
struct sums_view {
  label_kind kind;
  int layers, outputs, tokens, queries, horizon, votes_of_each;
  float factor;
  int const* sampled;             // [row, query] positions, ascending
  float* attention = nullptr;     // [row, output, query, token]
  float* mass = nullptr;          // [row, output, query, token]
  float* decayed = nullptr;       // [row, layer, token]
  std::int32_t* votes = nullptr;  // [row, token]
  double* all = nullptr;          // [row, token]
};

/// Number of sampled queries below `position`.
__device__ int queries_before(int const* sampled, int count, int position) {
  int first = 0;
  int end = count;
  while (first < end) {
    int const middle = (first + end) / 2;
    if (sampled[middle] < position) {
      first = middle + 1;
    } else {
      end = middle;
    }
  }
  return first;
}

/// Grid: (slots, row). A thread per slot of one layer's lane.
__global__ void __launch_bounds__(threads) see_kernel(sums_view const sums,
                                                      on_device::layer_positions const here,
                                                      on_device::layer_weights_view const seen,
                                                      int const layer) {
  auto const row = static_cast<int>(blockIdx.y);
  auto const slot = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int const n = here.rows[row].next;
  if (slot >= here.slots) return;
  int const token = here.positions[row * here.row_stride + slot];
  if (token < 0 || token > n) return;
  float weight = 0.0F;
  for (int head = 0; head < here.kv_heads; ++head) {
    weight += seen.weights[std::int64_t{row * here.kv_heads + head} * seen.stride + slot];
  }
  int const output = sums.outputs > 1 ? layer : 0;
  int const* const sampled = sums.sampled + row * sums.queries;
  auto const of_query = [&](float* data, int query) -> float& {
    return data[(std::int64_t{row * sums.outputs + output} * sums.queries + query) * sums.tokens +
                token];
  };
  int const at = queries_before(sampled, sums.queries, n);  // the first that is not before n
  bool const is_sampled = at < sums.queries && sampled[at] == n;
  if (sums.kind == label_kind::query && is_sampled) of_query(sums.attention, at) += weight;
  if (sums.kind == label_kind::future) {
    for (int q = at - 1; q >= 0 && n - sampled[q] <= sums.horizon; --q) {
      if (token <= sampled[q]) of_query(sums.attention, q) += weight;
    }
  }
  if (sums.mass != nullptr) {
    float& decayed = sums.decayed[std::int64_t{row * sums.layers + layer} * sums.tokens + token];
    decayed = decayed * sums.factor + weight;
    if (is_sampled) of_query(sums.mass, at) += decayed;
  }
}

/// One row per block: the layer's vote, kind uniform. Full attention holds position s in slot s.
__global__ void __launch_bounds__(threads) vote_kernel(sums_view const sums,
                                                       on_device::layer_positions const here,
                                                       on_device::layer_weights_view const seen) {
  extern __shared__ float weights[];  // [token]
  __shared__ int counts[threads / 32];
  auto const row = static_cast<int>(blockIdx.x);
  auto const thread = static_cast<int>(threadIdx.x);
  int const tokens = here.rows[row].next + 1;
  for (int i = thread; i < tokens; i += threads) {
    float weight = 0.0F;
    for (int head = 0; head < here.kv_heads; ++head) {
      weight += seen.weights[std::int64_t{row * here.kv_heads + head} * seen.stride + i];
    }
    weights[i] = weight;
    sums.all[std::int64_t{row} * sums.tokens + i] += double{weight};
  }
  __syncthreads();
  auto const count_at_least = [&](std::uint32_t bound) {
    int own = 0;
    for (int i = thread; i < tokens; i += threads) {
      own += __float_as_uint(weights[i]) >= bound ? 1 : 0;
    }
    for (int step = 16; step > 0; step /= 2) own += __shfl_xor_sync(0xFFFFFFFFU, own, step);
    __syncthreads();
    if (thread % 32 == 0) counts[thread / 32] = own;
    __syncthreads();
    int all = 0;
    for (int const part : counts) all += part;
    return all;
  };
  // the largest bound that at least votes_of_each reach; weights are not negative, so that their
  // bits are in their order
  std::uint32_t bound = 0;
  if (tokens > sums.votes_of_each) {
    for (std::uint32_t bit = 0x40000000U; bit != 0; bit >>= 1U) {
      if (count_at_least(bound | bit) >= sums.votes_of_each) bound |= bit;
    }
  }
  // of equals at the bound the newest
  int left = tokens > sums.votes_of_each ? sums.votes_of_each - count_at_least(bound + 1) : tokens;
  for (int i = thread; i < tokens; i += threads) {
    std::uint32_t const bits = __float_as_uint(weights[i]);
    bool votes = bits > bound;
    if (bits == bound) {
      int newer = 0;
      for (int k = i + 1; k < tokens; ++k) newer += __float_as_uint(weights[k]) == bound ? 1 : 0;
      votes = newer < left;
    }
    if (votes) ++sums.votes[std::int64_t{row} * sums.tokens + i];
  }
}

template <class T>
std::vector<T> of_row(std::vector<T> const& all, std::size_t row, std::size_t rows) {
  std::size_t const size = all.size() / rows;
  auto const first = all.begin() + static_cast<std::ptrdiff_t>(row * size);
  return {first, first + static_cast<std::ptrdiff_t>(size)};
}

}  // namespace

struct device_attention::state {
  on_device::device_model<float> weights;
};

std::optional<std::string> why_no_device() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return "there is no CUDA device";
  return std::nullopt;
}

device_attention::device_attention(llama_example::model const& weights)
    : state_(new state{on_device::device_model<float>(weights)}) {}
device_attention::~device_attention() = default;

void device_attention::show(label_options const& options, std::span<labelled_crop> crops) {
  if (crops.empty()) return;
  llama_example::model const& m = state_->weights.numbers();
  std::size_t const rows = crops.size();
  std::size_t const tokens = crops.front().tokens.size();
  std::size_t const queries = crops.front().labels.queries().size();
  auto const outputs = static_cast<std::size_t>(crops.front().labels.outputs());
  std::vector<int> sampled;
  for (labelled_crop const& crop : crops) {
    sampled.insert(sampled.end(), crop.labels.queries().begin(), crop.labels.queries().end());
  }
  bool const uniform = options.kind == label_kind::uniform;
  bool const has_mass = options.mass_factor > 0.0F;
  std::size_t const pairs = rows * outputs * queries * tokens;
  device_buffer<int> const positions{std::span<int const>(sampled)};
  device_buffer<float> attention(uniform ? 0 : pairs);
  device_buffer<float> mass(has_mass ? pairs : 0);
  device_buffer<float> decayed(has_mass ? rows * static_cast<std::size_t>(m.layers) * tokens : 0);
  device_buffer<std::int32_t> votes(uniform ? rows * tokens : 0);
  device_buffer<double> all(uniform ? rows * tokens : 0);
  sums_view const sums{options.kind,
                       m.layers,
                       static_cast<int>(outputs),
                       static_cast<int>(tokens),
                       static_cast<int>(queries),
                       options.horizon,
                       options.k / 2,
                       options.mass_factor,
                       positions.data(),
                       attention.data(),
                       mass.data(),
                       decayed.data(),
                       votes.data(),
                       all.data()};

  on_device::device_cache_options wanted;
  wanted.exports_weights = true;
  auto const cache = on_device::make_device_cache<float>("keep_all",
                                                         {.rows = static_cast<int>(rows),
                                                          .layers = m.layers,
                                                          .kv_heads = m.kv_heads,
                                                          .channels = m.channels,
                                                          .tokens = static_cast<int>(tokens)},
                                                         wanted);
  auto const see = [&](cudaStream_t stream, std::size_t, int layer) {
    auto const here = cache->positions(layer);
    auto const seen = cache->weights(layer);
    if (uniform) {
      vote_kernel<<<static_cast<unsigned>(rows), threads, tokens * sizeof(float), stream>>>(
          sums, here, seen);
    } else {
      dim3 const grid(static_cast<unsigned>((here.slots + threads - 1) / threads),
                      static_cast<unsigned>(rows));
      see_kernel<<<grid, threads, 0, stream>>>(sums, here, seen, layer);
    }
    check(cudaGetLastError());
  };
  on_device::device_engine_options engine_options;
  engine_options.watch.after = see;
  on_device::device_engine<float> engine(state_->weights, {cache.get()}, engine_options);
  attention.fill_async(0, engine.stream());
  mass.fill_async(0, engine.stream());
  decayed.fill_async(0, engine.stream());
  votes.fill_async(0, engine.stream());
  all.fill_async(0, engine.stream());
  for (std::size_t row = 0; row < rows; ++row) {
    cache->open_async(engine.stream(), static_cast<int>(row), 0);
  }
  std::vector<std::int32_t> ids(rows);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t row = 0; row < rows; ++row) ids[row] = crops[row].tokens[t];
    engine.set_ids(ids);
    engine.step_async();
  }
  auto const of_attention = attention.to_host(engine.stream());
  auto const of_mass = mass.to_host(engine.stream());
  auto const of_votes = votes.to_host(engine.stream());
  auto const of_all = all.to_host(engine.stream());
  for (std::size_t row = 0; row < rows; ++row) {
    crops[row].labels.take({of_row(of_attention, row, rows),
                            of_row(of_mass, row, rows),
                            of_row(of_votes, row, rows),
                            of_row(of_all, row, rows)});
  }
}

}  // namespace controller_labels
