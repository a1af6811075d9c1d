// SPDX-License-Identifier: Apache-2.0
// A row's books in a file: going on from it equals going on without, and no damage goes unseen.
#include "adore/eviction/snapshot_file.hpp"

#include "adore/kv_cache.hpp"
#include "adore/philox.hpp"
#include "adore/policies/decayed_h2o.hpp"
#include "adore/policies/every_policy.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/random.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/strided_doubling.hpp"
#include "adore/policies/tova.hpp"
#include "adore/stores/host_store.hpp"

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <ios>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

using namespace adore;

namespace {

kv_shape const shape{.sequences = 2, .layers = 2, .kv_heads = 2, .slots = 13, .channels = 4};

std::vector<float> floats(std::uint32_t key, index_t count) {
  std::vector<float> result;
  for (index_t i = 0; i < count; ++i) {
    auto const bits = static_cast<std::uint32_t>(philox(key, static_cast<std::uint64_t>(i)));
    result.push_back(4.0F * unit_float(bits) - 2.0F);
  }
  return result;
}

/// One step of one row with data that depend on its number alone; gives all outputs.
template <class Cache>
std::vector<float> step(Cache& cache, index_t row, std::uint32_t number) {
  row_tokens const one{row};
  cache.begin_step({&one, 1});
  std::vector<float> all;
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    std::uint32_t const key = 6 * number + 3 * static_cast<std::uint32_t>(layer);
    auto const k = floats(key, shape.kv_heads * shape.channels);
    auto const v = floats(key + 1, shape.kv_heads * shape.channels);
    auto const q = floats(key + 2, 2 * shape.kv_heads * shape.channels);
    std::vector<float> out(q.size());
    cache.append(layer,
                 {k.data(), 1, shape.kv_heads, shape.channels},
                 {v.data(), 1, shape.kv_heads, shape.channels});
    cache.attend(layer,
                 {q.data(), 1, 2 * shape.kv_heads, shape.channels},
                 {out.data(), 1, 2 * shape.kv_heads, shape.channels});
    all.insert(all.end(), out.begin(), out.end());
  }
  cache.end_step();
  return all;
}

template <class Policy>
std::string file_of(kv_cache<host_store<float>, Policy> const& cache, index_t row) {
  std::ostringstream file;
  save(file, cache.snapshot(row), Policy::name);
  return file.str();
}

template <class Policy>
void goes_on(Policy const& policy) {
  CAPTURE(Policy::name);
  cache_options const options{.rotation = rope(shape.channels, 1e4, rope_pairs::halves)};
  kv_cache whole(host_store<float>(shape), policy, options);
  whole.open(0, 11);
  std::uint32_t number = 0;
  for (; number < 40; ++number) step(whole, 0, number);
  std::string const file = file_of(whole, 0);

  // the store's part is the store's to save: here a copy, in the same slots
  kv_cache resumed(whole.store(), policy, options);
  std::istringstream stream(file + "behind");
  resumed.restore(0, load(stream, Policy::name, "row.adore"));
  std::string behind;
  stream >> behind;
  CHECK(behind == "behind");
  CHECK(file_of(resumed, 0) == file);
  for (; number < 80; ++number) {
    REQUIRE(step(whole, 0, number) == step(resumed, 0, number));
    for (index_t head = 0; head < shape.kv_heads; ++head) {
      REQUIRE(whole.kept(0, 1, head) == resumed.kept(0, 1, head));
    }
  }
  CHECK(file_of(resumed, 0) == file_of(whole, 0));
}

/// The bytes of a value with padding are no constant, since some of them have no value.
template <class T>
concept has_no_padding = std::is_empty_v<T> || requires {
  typename std::bool_constant<(std::bit_cast<std::array<signed char, sizeof(T)>>(T{}), true)>;
};
template <class... Policies>
void every_state_is_whole(policy_list<Policies...>) {
  static_assert((has_no_padding<slot_state_of<Policies>> && ...));
  static_assert((has_no_padding<lane_state_of<Policies>> && ...));
}

/// Small, with something in every field.
row_snapshot small_row() {
  row_snapshot row{.reach = scope::layer, .next = 9, .seed = 0x1122334455667788U};
  row.budgets = {2, unbounded};
  row.positions = {0, 8, no_position, 3, 8, no_position};
  row.rotary = {0, 7, no_position, 3, 7, no_position};
  for (int i = 0; i < 6; ++i) row.slot_states.push_back(static_cast<std::byte>(40 * i));
  row.lane_states = {std::byte{1}, std::byte{255}};
  return row;
}
std::string file_of(row_snapshot const& row) {
  std::ostringstream file;
  save(file, row, "h2o");
  return file.str();
}
std::string small_file() {
  return file_of(small_row());
}
/// The same with a past, which has something in every field too.
row_snapshot small_row_with_past() {
  row_snapshot row = small_row();
  past_snapshot& past = row.past.emplace();
  past.phase = 5;
  past.ids = {7, 70, 700, 7000};
  past.cached = {std::byte{1}, std::byte{0}};
  past.states = {std::byte{3}, std::byte{200}, std::byte{9}};
  past.guests = {4, 2};
  past.guest_slots = {1, 6};
  past.tier_positions = {3, 1, 2};
  past.tier = {std::byte{8}};
  return row;
}
/// The sentence with which a file is refused, "accepted" if it is not.
std::string refusal(std::string const& file, std::string const& policy = "h2o") {
  std::istringstream stream(file);
  try {
    load(stream, policy, "row.adore");
  } catch (std::runtime_error const& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("snapshot_file: going on after a load equals going on without") {
  goes_on(h2o{.heavy = 6, .recent = 5});
  goes_on(decayed_h2o{.heavy = 6, .recent = 5});
  goes_on(tova{.size = 11});
  goes_on(key_norm::of_budget(11));
  goes_on(random_reservoir::of_budget(11));
  goes_on(random_victim::of_budget(11));
  goes_on(streaming_llm{.sinks = 3, .window = 8});
  goes_on(strided_doubling{.interval = 2, .window = 4, .limit = 11});
}

TEST_CASE("snapshot_file: no state has bytes without a value, so equal books are equal files") {
  every_state_is_whole(every_policy{});
  struct padded {
    std::uint8_t a = 0;
    std::uint32_t b = 0;
  };
  static_assert(!has_no_padding<padded> && has_no_padding<no_state>);
}

TEST_CASE("snapshot_file: each field comes back") {
  std::istringstream stream(small_file());
  row_snapshot const row = load(stream, "h2o", "row.adore");
  row_snapshot const wanted = small_row();
  CHECK(row.reach == wanted.reach);
  CHECK(row.next == wanted.next);
  CHECK(row.seed == wanted.seed);
  CHECK(row.budgets == wanted.budgets);
  CHECK(row.positions == wanted.positions);
  CHECK(row.rotary == wanted.rotary);
  CHECK(row.slot_states == wanted.slot_states);
  CHECK(row.lane_states == wanted.lane_states);
  CHECK(stream.peek() == std::istringstream::traits_type::eof());
}

TEST_CASE("snapshot_file: each field of a past comes back") {
  past_snapshot const wanted = *small_row_with_past().past;
  std::istringstream stream(file_of(small_row_with_past()));
  row_snapshot const row = load(stream, "h2o", "row.adore");
  REQUIRE(row.past.has_value());
  past_snapshot const& past = *row.past;
  CHECK(past.phase == wanted.phase);
  CHECK(past.ids == wanted.ids);
  CHECK(past.cached == wanted.cached);
  CHECK(past.states == wanted.states);
  CHECK(past.guests == wanted.guests);
  CHECK(past.guest_slots == wanted.guest_slots);
  CHECK(past.tier_positions == wanted.tier_positions);
  CHECK(past.tier == wanted.tier);
  CHECK(row.lane_states == small_row().lane_states);
  CHECK(stream.peek() == std::istringstream::traits_type::eof());
  // what has no past is written as before there was one
  CHECK(small_file().substr(8, 4) == std::string("\1\0\0\0", 4));
  CHECK(file_of(small_row_with_past()).substr(8, 4) == std::string("\2\0\0\0", 4));
}

TEST_CASE("snapshot_file: numbers are little-endian, whatever machine wrote them") {
  std::string const file = small_file();
  CHECK(file.substr(0, 8) == "adorerow");
  CHECK(file.substr(8, 4) == std::string("\1\0\0\0", 4));
  CHECK(file.substr(12, 4) == std::string("\3\0\0\0", 4));
  CHECK(file.substr(24, 3) == "h2o");
  CHECK(file.substr(28, 12) == std::string("\x09\0\0\0\x88\x77\x66\x55\x44\x33\x22\x11", 12));
  // FNV-1a of a known text: "foobar" hashes to this by the authors' test vectors
  detail::fnv_1a sum;
  sum.add("foobar", 6);
  CHECK(sum.sum() == 0x85944171F73967E8U);
}

TEST_CASE("snapshot_file: a file cut off anywhere is refused") {
  std::string const file = file_of(small_row_with_past());
  for (std::size_t size = 0; size < file.size(); ++size) {
    CAPTURE(size);
    std::string const why = refusal(file.substr(0, size));
    CHECK(why.find("adore: row.adore, byte " + std::to_string(size) + ": the file ends here; ") ==
          0);
  }
}

TEST_CASE("snapshot_file: a flipped bit anywhere is refused") {
  std::string const file = file_of(small_row_with_past());
  for (std::size_t byte = 0; byte < file.size(); ++byte) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      CAPTURE(byte);
      CAPTURE(bit);
      std::string damaged = file;
      damaged[byte] = static_cast<char>(static_cast<unsigned char>(file[byte]) ^ (1U << bit));
      CHECK(refusal(damaged).find("adore: row.adore, byte ") == 0);
    }
  }
}

TEST_CASE("snapshot_file: a count of 2^60 asks for no memory") {
  std::string damaged = small_file();
  damaged[23] = '\x10';  // bytes of the books
  CHECK(refusal(damaged).find("the file ends here") != std::string::npos);
  damaged = small_file();
  damaged[47] = '\x10';  // number of budgets, behind scope, position and seed
  CHECK(refusal(damaged).find("adore: row.adore, byte 40: at most ") == 0);
}

TEST_CASE("snapshot_file: what is expected is said") {
  std::string other = small_file();
  other[8] = 3;
  CHECK(refusal(other) == "adore: row.adore, byte 8: expected version 1 or 2, not 3");
  CHECK(refusal(small_file(), "tov") ==
        "adore: row.adore, byte 24: expected policy \"tov\", not \"h2o\"");
  CHECK(
      refusal(small_file(), "tova").find("byte 12: expected a policy name of 4 bytes (\"tova\")") !=
      std::string::npos);
  CHECK(refusal("GGUF and more than enough bytes") ==
        "adore: row.adore, byte 0: expected \"adorerow\", the start of a row snapshot");
  std::ostringstream full;
  full.setstate(std::ios::badbit);
  CHECK_THROWS_AS(save(full, small_row(), "h2o"), std::runtime_error);
}
