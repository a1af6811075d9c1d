// SPDX-License-Identifier: Apache-2.0
// Read `answers_of` first. What retrieval.cpp does on the host: all rows take part in every step of
// a batch, with a token of their prompt or with the one that they have just chosen.
#include "device.hpp"
#include "device_contestant.cuh"
#include "llama/gpu/device_cache.cuh"
#include "llama/gpu/device_engine.cuh"
#include "llama/gpu/device_model.cuh"
#include "retrieval.hpp"
#include <adore/gpu/device_buffer.cuh>
#include <adore/gpu/error.cuh>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace comparison {

namespace {

using adore::gpu::check;
using adore::gpu::device_buffer;
namespace on_device = llama_example::gpu;

constexpr int threads = 128;
constexpr std::int32_t not_in_prompt = -1;

/// The rows' next tokens: the prompt's, as long as there are any, instead of the chosen one.
///
/// @param prompt  [sequence] tokens of the coming step, or `not_in_prompt`
/// @param ids     [row] what the rows have chosen, group after group
/// @param text    [row] where the next tokens are noted
__global__ void __launch_bounds__(threads) next_tokens_kernel(
    std::int32_t const* prompt, int sequences, std::int32_t* ids, std::int32_t* text, int rows) {
  auto const row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  std::int32_t const given = prompt[row % sequences];
  if (given != not_in_prompt) ids[row] = given;
  text[row] = ids[row];
}

/// The prompts of a batch, [step, sequence], `not_in_prompt` behind their ends.
std::vector<std::int32_t> prompts_of(std::span<retrieval_case const> batch, int steps) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(steps) * batch.size(), not_in_prompt);
  for (std::size_t sequence = 0; sequence < batch.size(); ++sequence) {
    auto const& prompt = batch[sequence].prompt;
    for (std::size_t t = 0; t < prompt.size(); ++t) {
      tokens[t * batch.size() + sequence] = prompt[t];
    }
  }
  return tokens;
}

/// Runs a batch for all contestants and adds what they answer to `lines`.
///
/// @param done  called after each step
template <class Done>
void answers_of(std::span<retrieval_case const> batch,
                request const& asked,
                on_device::device_model<float> const& weights,
                std::vector<answered>& lines,
                Done const& done) {
  auto const sequences = static_cast<int>(batch.size());
  int const steps = steps_of(batch, asked.answer_tokens);
  std::vector<std::unique_ptr<on_device::device_cache<float>>> caches;
  std::vector<on_device::device_cache<float>*> groups;
  for (contestant const& entry : asked.contestants) {
    caches.push_back(make_device_contestant(entry, asked, weights, sequences, steps, false));
    groups.push_back(caches.back().get());
  }
  on_device::device_engine<float> engine(
      weights, groups, on_device::device_engine_options{.greedy = true});
  cudaStream_t const stream = engine.stream();
  for (auto const& cache : caches) {
    for (int row = 0; row < sequences; ++row) {
      cache->open_async(stream, row, static_cast<std::uint64_t>(row));
    }
  }

  auto const rows = static_cast<std::size_t>(engine.rows());
  // behind the last step comes the answer's last token, which no step reads
  device_buffer<std::int32_t> const prompts(prompts_of(batch, steps + 1));
  device_buffer<std::int32_t> texts(rows * static_cast<std::size_t>(steps + 1));  // [step, row]
  auto const choose = [&](int t) {
    auto const blocks = static_cast<unsigned>((engine.rows() + threads - 1) / threads);
    next_tokens_kernel<<<blocks, threads, 0, stream>>>(
        prompts.data() + static_cast<std::size_t>(t) * batch.size(),
        sequences,
        engine.ids(),
        texts.data() + static_cast<std::size_t>(t) * rows,
        engine.rows());
    check(cudaGetLastError());
  };
  choose(0);
  for (int t = 0; t < steps; ++t) {
    engine.step_async();
    choose(t + 1);
    done(stream);
  }

  auto const text = texts.to_host(stream);
  for (std::size_t group = 0; group < caches.size(); ++group) {
    on_device::device_cache<float> const& cache = *caches[group];
    contestant const& entry = asked.contestants[group];
    if (cache.tokens_without_room(stream) > 0) {
      throw std::logic_error(entry.policy + " ran out of slots");
    }
    if (lines.size() == group) {
      result line = line_of(asked, entry, cache.policy(), cache.nominal_budget(), cache.reach());
      line.kv_bytes = cache.allocated_bytes();
      line.kv_bytes_live = cache.live_bytes(stream);
      lines.push_back({std::move(line), {}});
    }
    for (std::size_t sequence = 0; sequence < batch.size(); ++sequence) {
      auto& answer = lines[group].answers.emplace_back();
      for (int i = 0; i < asked.answer_tokens; ++i) {
        std::size_t const t = batch[sequence].prompt.size() + static_cast<std::size_t>(i);
        answer.push_back(text[t * rows + group * batch.size() + sequence]);
      }
    }
  }
}

}  // namespace

std::vector<answered> retrieve_on_device(request const& asked,
                                         llama_example::model const& weights,
                                         progress const& report) {
  constexpr int steps_between_reports = 16;  // the host waits for the device only then
  for (retrieval_case const& one : asked.cases) {
    for (std::int32_t const id : one.prompt) {
      if (id < 0 || id >= weights.vocabulary) {
        throw std::invalid_argument("token id = " + std::to_string(id) + ": the model has " +
                                    std::to_string(weights.vocabulary) + " tokens");
      }
    }
  }
  on_device::device_model<float> const on_card(weights);
  auto const batches = batches_of(asked);
  int all = 0;
  for (auto const& batch : batches) all += steps_of(batch, asked.answer_tokens);
  int steps = 0;
  std::vector<answered> lines;
  for (auto const& batch : batches) {
    answers_of(batch, asked, on_card, lines, [&](cudaStream_t stream) {
      if (++steps % steps_between_reports != 0 && steps != all) return;
      check(cudaStreamSynchronize(stream));
      report(steps, all);
    });
  }
  return lines;
}

}  // namespace comparison
