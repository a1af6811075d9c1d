// SPDX-License-Identifier: Apache-2.0
// Times what a stream does, by device events around replays of a captured graph, so that launch
// gaps stay out; as iterations of Google Benchmark.
#pragma once

#include <adore/gpu/error.cuh>

#include <cuda_runtime_api.h>

#include <benchmark/benchmark.h>

#include <functional>
#include <string>

namespace adore::bench {

/// Runs `work` as a graph; reported is the time of one of its `units`.
///
/// @param work  enqueues everything on the stream, without synchronising or allocating
inline void time_graph(benchmark::State& state,
                       int units,
                       std::function<void(cudaStream_t)> const& work) {
  using gpu::check;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work(stream);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (int i = 0; i < 3; ++i) check(cudaGraphLaunch(replay, stream));
  check(cudaStreamSynchronize(stream));
  for (auto _ : state) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(replay, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    state.SetIterationTime(1e-3 * milliseconds / units);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  check(cudaGraphExecDestroy(replay));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
}

/// @param name  stage: variant/shape, as table.py takes it apart
template <class Run>
void add(std::string const& name, Run run) {
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(20)
      ->Repetitions(3)
      ->ReportAggregatesOnly();
}

}  // namespace adore::bench
