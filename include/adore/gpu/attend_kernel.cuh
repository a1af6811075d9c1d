// SPDX-License-Identifier: Apache-2.0
// The kernel of decode attention: what a block does with its lanes, and in which order it asks for
// what they need.
#pragma once

#include "adore/concepts.hpp"
#include "adore/gpu/attend_args.cuh"
#include "adore/gpu/attended_decision.cuh"
#include "adore/gpu/attention_plan.cuh"
#include "adore/gpu/books_ahead.cuh"
#include "adore/gpu/chunk_positions.cuh"
#include "adore/gpu/lane_attention.cuh"
#include "adore/gpu/lane_decision.cuh"
#include "adore/gpu/lane_exchange.cuh"
#include "adore/gpu/lane_head.cuh"
#include "adore/gpu/launch.cuh"
#include "adore/gpu/ledger_view.cuh"
#include "adore/gpu/tile_ring.cuh"
#include "adore/gpu/warp.cuh"

namespace adore::gpu::detail {

/// Lanes of one layer, one after the other; up to `QueryRows` query rows at once.
template <class T, int Channels, int QueryRows, class P, class View, class Guests, class Plan>
__global__ void __launch_bounds__(
    attend_warps_per_multiprocessor<T, Channels, QueryRows>* warp_threads, 1)
    attend_kernel(__grid_constant__ attend_args<T, View, Guests> const args,
                  __grid_constant__ ledger_view<P> const ledger,
                  __grid_constant__ P const policy,
                  __grid_constant__ Plan const plan) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  __shared__ attend_shared<QueryRows> shared;
  let_next_begin();
  auto const first_lane = static_cast<index_t>(blockIdx.x >> plan.block_shift);
  index_t const apart = plan.schedule.clusters;
  bool const decides = args.decides && ledger.reach == scope::kv_head;
  // books come two lanes ahead, heads one: whoever asks late waits for microseconds
  books_ahead<P> books(
      ledger, args.layer, plan.schedule, reinterpret_cast<step_books*>(shared.books));
  books.request(first_lane, 0);
  books.request(first_lane + apart, 1);
  index_t const* rebuilt_counts = nullptr;
  if constexpr (Guests::has_guests) rebuilt_counts = args.rebuilt.counts;
  auto const rebuilt_of = [&](index_t number) -> index_t {
    return rebuilt_counts == nullptr ? 0 : rebuilt_counts[plan.schedule.lane(number).row];
  };
  tile_ring<T, Channels, P, View, Plan> ring(
      {ledger, args.keys, args.values, args.layer, rebuilt_counts, plan},
      first_lane,
      shared_address(dynamic),
      shared_address(dynamic) + static_cast<unsigned>(plan.arrivals));
  books.arrive();
  chunk_positions<P, Plan> positions(
      ledger,
      plan,
      shared_address(dynamic) + static_cast<unsigned>(plan.positions),
      shared_address(shared.position_arrivals));
  lane_head<T, Channels, P, Plan> fetched(
      plan,
      ledger.max_new,
      shared_address(dynamic) + static_cast<unsigned>(plan.heads),
      shared_address(dynamic) + static_cast<unsigned>(plan.states),
      shared_address(dynamic) + static_cast<unsigned>(plan.positions),
      shared_address(shared.head_arrivals));
  lane_attention<T, Channels, QueryRows, P, View, Guests, Plan> attention(
      args, ledger, policy, plan, dynamic, shared);
  attended_decision<T, Channels, QueryRows, P, View, Guests, Plan> decision(
      args, ledger, policy, plan, shared);
  // all blocks run before one looks into another
  if (plan.blocks > 1 && !plan.exchanges) meet_in_cluster();
  index_t const first_chunk = static_cast<index_t>(block_rank(plan)) * plan.block_chunks;
  index_t const end_chunk = first_chunk + plan.block_chunks;
  auto const ask_for = [&](index_t number, step_books const& of) {
    fetched.request(
        args, ledger, number, of.row.count, rebuilt_of(number), share_of(of.lane.extent, plan));
  };
  auto const ask_for_positions = [&](index_t number, index_t extent, index_t chunk) {
    lane_number const at = plan.schedule.lane(number);
    positions.request(ledger.lane(at.row, args.layer, at.head), chunk_of(extent, chunk, plan));
  };
  wait_for_previous();  // K, V and the ledger it leaves alone; q, k and v may be its work
  index_t n = 0;
#pragma unroll 1
  for (index_t number = first_lane; number < plan.schedule.lanes; number += apart, ++n) {
    books.request(number + 2 * apart, n + 2);
    lane_number const at = plan.schedule.lane(number);
    lane_of_step lane{
        .row = at.row, .head = at.head, .rebuilt = rebuilt_of(number), .books = books.of(n)};
    if (lane.count() == 0) {
      books.arrive();
      __syncthreads();
      continue;
    }
    if constexpr (Plan::one_query) lane.books.row.count = 1;
    lane.lane = ledger.lane(lane.row, args.layer, lane.head);
    lane.token = lane.row * ledger.max_new;
    lane.share = share_of(lane.books.lane.extent, plan);
    if (plan.exchanges) {
      lane.share.exchange =
          lane_exchange(ledger.exchange, ledger.exchange_floats, first_lane, lane.share.blocks);
    }
    if (fetched.requested() != number) ask_for(number, lane.books);
    if (positions.requested() != lane.lane) {
      ask_for_positions(number, lane.books.lane.extent, first_chunk);
    }
    fetched.take();
    index_t const following = number + apart;
    bool const follows = following < plan.schedule.lanes && books.of(n + 1).row.count > 0;
    if (follows) ask_for(following, books.of(n + 1));
    fetched.request_states(ledger, lane.lane, lane.share);
    if constexpr (scores_keys<P>) decision.measure_keys(lane);

    index_t const passes = attention.rows().passes(lane);
#pragma unroll 1
    for (index_t pass = 0; pass < passes; ++pass) {
#pragma unroll 1
      for (index_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
        positions.take(lane.lane, chunk_of(lane.books.lane.extent, chunk, plan), fetched.buffer());
        bool const is_last = chunk + 1 == end_chunk;
        bool const leaves = is_last && pass + 1 == passes;
        if (!leaves || follows) {
          ask_for_positions(leaves ? following : number,
                            leaves ? books.of(n + 1).lane.extent : lane.books.lane.extent,
                            is_last ? first_chunk : chunk + 1);
        }
        attention.attend(lane, pass, chunk, fetched, positions, ring);
        books.arrive();
        __syncthreads();
        if (plan.chunks > 1) attention.softmax().close_chunk(lane, pass, chunk);
      }
      attention.softmax().merge(lane, pass);
      attention.weights().use(lane, pass, decides);
      if (pass + 1 < passes) sync_lane(lane.share);  // the next pass writes over what this one read
    }
    // nobody goes on, or leaves, while its shared memory is being read
    if (decides) {
      fetched.take_states();
      decision.decide(lane, fetched, positions, attention.weights());
    } else if (!plan.exchanges || following < plan.schedule.lanes) {
      sync_lane(lane.share);
    }
  }
}

}  // namespace adore::gpu::detail
