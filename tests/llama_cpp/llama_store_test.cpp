// SPDX-License-Identifier: Apache-2.0
// The adapter keeps the contract of stores that place tokens themselves, on a real context.
#include "llama_cpp/llama_store.hpp"

#include "llama_cpp/attention_reader.hpp"
#include "loaded_model.hpp"
#include <adore/testing/store_contract.hpp>

#include <doctest/doctest.h>

#include <memory>
#include <stdexcept>
#include <utility>

namespace {

using adore::index_t;
using llama_cpp_example::attention_reader;
using llama_cpp_example::llama_store;
using llama_cpp_example::testing::loaded_model;

constexpr index_t sequences = 2;

/// A store with the context that it stands for, as an engine would own both.
struct owned_store : llama_store {
  struct engine {
    std::vector<std::int64_t> cells;
    attention_reader reader{
        [this](std::span<std::int64_t const> seen) { cells.assign(seen.begin(), seen.end()); }, {}};
    llama_cpp_example::context_ptr context;
  };
  explicit owned_store(std::unique_ptr<engine> made)
      : llama_store(made->context.get(), sequences), running(std::move(made)) {}
  std::unique_ptr<engine> running;
};

owned_store make_store(llama_model* model) {
  auto engine = std::make_unique<owned_store::engine>();
  engine->reader.read_weights(false);
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = 256;
  parameters.n_seq_max = sequences;
  parameters.kv_unified = true;
  parameters.n_threads = parameters.n_threads_batch = 1;
  parameters.cb_eval = attention_reader::on_node;
  parameters.cb_eval_user_data = &engine->reader;
  engine->context.reset(llama_init_from_model(model, parameters));
  REQUIRE(engine->context != nullptr);
  return owned_store(std::move(engine));
}

/// llama.cpp decodes the tokens and says where they are.
auto const decode = [](owned_store& store, auto& cache, index_t row, index_t count) {
  llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (index_t j = 0; j < count; ++j) {
    batch.token[j] = 3;
    batch.pos[j] = store.next_rotary(row) + j;
    batch.n_seq_id[j] = 1;
    batch.seq_id[j][0] = row;
    batch.logits[j] = 0;
  }
  int const status = llama_decode(store.running->context.get(), batch);
  std::vector<adore::position_t> const rotary(batch.pos, batch.pos + count);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode: " + std::to_string(status));
  for (index_t j = 0; j < count; ++j) {
    auto const cell = static_cast<index_t>(store.running->cells[static_cast<std::size_t>(j)]);
    cache.placed(row, 0, 0, j, cell);
    store.put(
        row, cell, {cache.books().next_position(row) + j, rotary[static_cast<std::size_t>(j)]});
  }
};

}  // namespace

TEST_CASE("llama.cpp's cache keeps the contract of stores") {
  loaded_model const model;
  adore::testing::check_store(
      [&](adore::kv_shape const&) { return make_store(model.weights.get()); },
      decode,
      {.shape = {.sequences = sequences, .layers = 2, .slots = 256}, .steps = 600});
}

TEST_CASE("a shift moves the tokens of the table and those of llama.cpp alike") {
  loaded_model const model;
  owned_store store = make_store(model.weights.get());
  adore::kv_cache cache(adore::testing::detail::audited_store<owned_store>(std::move(store)),
                        adore::streaming_llm{.sinks = 2, .window = 3},
                        {.positions = adore::position_scheme::original});
  cache.open(0, 0);
  auto const step = [&] {
    cache.begin_step();
    decode(cache.store().itself(), cache, 0, 1);
    cache.end_step();
  };
  for (int i = 0; i < 9; ++i) step();
  llama_store& moved = cache.store().itself();
  auto const memory = llama_get_memory(cache.store().itself().running->context.get());
  REQUIRE(cache.kept(0) == std::vector<adore::position_t>{0, 1, 6, 7, 8});
  CHECK(moved.next_rotary(0) == 9);
  moved.shift(0, 6, 9, -4);
  CHECK(llama_memory_seq_pos_max(memory, 0) == 4);
  CHECK(moved.next_rotary(0) == 5);
  step();  // position 9 at rotary position 5; 6, now at 2, goes
  CHECK(cache.kept(0) == std::vector<adore::position_t>{0, 1, 7, 8, 9});
  CHECK(llama_memory_seq_pos_max(memory, 0) == 5);
  for (int i = 0; i < 3; ++i) step();
  CHECK(cache.kept(0) == std::vector<adore::position_t>{0, 1, 10, 11, 12});
  cache.close(0);
  CHECK(llama_memory_seq_pos_max(memory, 0) == -1);
}
