#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do the tests see faults? Seeds one fault at a time into a copy of the headers, compiles the tests
that should see it and runs them.

    tests/seeded_faults.py                 all faults, two at a time
    tests/seeded_faults.py --only rope     those whose name or header contains "rope"
    tests/seeded_faults.py --quick         without the slowest tests, which some faults need
    tests/seeded_faults.py --list

Prints "caught", "NOT CAUGHT" or "does not apply" (the text to replace is gone: bring the table up
to date) per fault, and exits with 1 unless all were caught. Run it on demand: it compiles for many
minutes. Standard library, a C++20 compiler and doctest; ccache where there is one.
"""
import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O0", "-w", "-D_GLIBCXX_ASSERTIONS", "-Iinclude", "-Itests"]
RUN_LIMIT_S = 120  # a fault may make a test run for ever


@dataclasses.dataclass
class Fault:
    name: str
    header: str  # below include/adore
    old: str  # must occur; its first occurrence is replaced
    new: str
    tests: list  # names below tests, without _test.cpp; the first that fails ends the search


# The dear ones, which link the list of all policies, come last in a fault's list.
CONTRACT = "policy_contract"
ANY_ORDER = "random_operations"
REFERENCE = "attention/reference"
EDGES = "edge_cases"
CACHE = "kv_cache"
PAGES = ["stores/paged_store"]
FAULTS = [
    # ---------------------------------------------------------------- the order of release
    Fault("tie rule flipped in the key", "order_key.hpp",
          "newest_first ? ~static_cast<std::uint32_t>(position)",
          "!newest_first ? ~static_cast<std::uint32_t>(position)",
          ["eviction/rank", "eviction/victim_queue"]),
    Fault("tie rule flipped in the pass over a lane", "eviction/rank.hpp",
          "releases_newest_of_equals<P> ? ~position", "!releases_newest_of_equals<P> ? ~position",
          ["eviction/rank", EDGES]),
    Fault("-0 not normalised", "order_key.hpp", "bits < 0 ? -magnitude", "bits < 0 ? ~magnitude",
          ["eviction/rank"]),
    Fault("NaN last instead of first", "order_key.hpp",
          "? (-0x7FFFFFFF - 1) : ordered", "? 0x7FFFFFFE : ordered",
          ["eviction/rank", EDGES]),
    Fault("negative priorities ordered by their bits", "eviction/rank.hpp",
          "if (largest <= infinity) return", "if (largest <= 0xFF800000U) return",
          ["eviction/rank", "policies/key_norm"]),
    Fault("the protected range is one token too long", "concepts.hpp",
          "-1 : lane.newest - count;", "-1 : lane.newest - count - 1;",
          ["policies/h2o", CONTRACT]),
    Fault("the protected range is one token too short", "concepts.hpp",
          "-1 : lane.newest - count;", "-1 : lane.newest - count + 1;",
          ["policies/h2o", CONTRACT]),
    Fault("protected tokens: the first lose before the newest", "eviction/select.hpp",
          "position >= first ? among_newest : among_first",
          "position < first ? among_newest : among_first", ["eviction/select"]),
    Fault("many victims: one too many", "eviction/select.hpp",
          "view.occupied - view.budget, victims)", "view.occupied - view.budget + 1, victims)",
          ["policies/snapkv", EDGES, "policies/h2o", ANY_ORDER]),
    Fault("keep_never stays below the budget", "eviction/victim_search.hpp",
          "view.occupied > view.budget || lowest.rank <= ordered_keep_never",
          "view.occupied > view.budget", ["policies/sentinel", EDGES]),
    Fault("a NaN hides what is never kept from the pass", "eviction/select.hpp",
          "lowest.rank < ordered_keep_never) {",
          "lowest.rank < ordered_keep_never) return; else if (false) {",
          ["eviction/victim_queue"]),
    Fault("a NaN is not the queue's first victim", "eviction/victim_queue.hpp",
          "excess > 0 && top_is_nan(lane)", "false", ["eviction/victim_queue"]),
    Fault("a doubling in vain stays", "eviction/select.hpp",
          "*lane.lane_state = before;", "", ["policies/strided"]),
    Fault("a sequence ends one position early", "eviction/sequence_rows.hpp",
          "count - 1 > last_position", "count > last_position", [EDGES]),
    Fault("the heap takes the larger child", "eviction/victim_queue.hpp",
          "first[child + 1].key < first[child].key", "first[child + 1].key > first[child].key",
          ["eviction/victim_queue", "policies/key_norm"]),
    # ---------------------------------------------------------------- the books
    Fault("budget off by one", "eviction/lane_budget.hpp", "return policy.budget();",
          "return policy.budget() == unbounded ? unbounded : policy.budget() - 1;",
          ["policies/sliding_window", CONTRACT]),
    Fault("slot state kept when a slot is reused", "eviction/lane_memory.hpp",
          "if constexpr (keeps_slot_state) states_[cell] = {};", "",
          ["policies/h2o", ANY_ORDER]),
    Fault("a released slot is free twice", "eviction/lane_table.hpp",
          "    --at(lane).occupied;\n    give_back(lane, slot);",
          "    --at(lane).occupied;\n    give_back(lane, slot);\n    give_back(lane, slot);",
          ["policies/h2o", CONTRACT]),
    Fault("a rejected token's slot is lost", "eviction/lane_table.hpp",
          "      give_back(lane, slots[j]);\n", "", [CACHE, CONTRACT, ANY_ORDER]),
    Fault("rejected tokens stay", "eviction/lane_table.hpp",
          "for (index_t j = record.new_count; j-- > accepted;)",
          "for (index_t j = record.new_count; j-- > record.new_count;)",
          [CACHE, "policies/tova", CONTRACT, ANY_ORDER]),
    Fault("a fork without slot states", "eviction/lane_memory.hpp",
          "if constexpr (keeps_slot_state) copy_cells(states_, from, to);", "",
          [CACHE, CONTRACT, ANY_ORDER]),
    Fault("a fork without lane states", "eviction/lane_memory.hpp",
          "lane_states_[static_cast<std::size_t>(to)] = "
          "lane_states_[static_cast<std::size_t>(from)];", "", [CACHE, CONTRACT, ANY_ORDER]),
    Fault("a fork without the queue", "eviction/ledger.hpp",
          "search_.copy(lane, twin);", "", [CACHE, CONTRACT]),
    Fault("a row's lane state survives its sequence", "eviction/lane_memory.hpp",
          "if constexpr (keeps_lane_state) lane_states_[static_cast<std::size_t>(lane)] = {};",
          "", [ANY_ORDER, CONTRACT, EDGES]),
    Fault("the seed belongs to the row", "eviction/ledger.hpp",
          "            rows_.seed(row_of(lane))};",
          "            static_cast<std::uint64_t>(row_of(lane))};",
          ["policies/random", CONTRACT]),
    Fault("a new budget is not applied at once", "eviction/ledger.hpp",
          "    shrink(lane, budget);\n", "", [EDGES, ANY_ORDER]),
    Fault("room is made for one token too few", "cached_rows.hpp",
          "budget - tokens)", "budget - tokens + 1)", ["policies/streaming_llm", EDGES]),
    # ---------------------------------------------------------------- what the policy is told
    Fault("rejected observations counted", "kv_cache.hpp",
          "attention_.accepted_weights(policy(), lane, stay)",
          "attention_.accepted_weights(policy(), lane, step.count)",
          [CACHE, "policies/tova", "policies/h2o", CONTRACT, ANY_ORDER]),
    Fault("weights summed over the batch", "attention/step_attention.hpp",
          "pending_.row(books.lane(step.row, at.layer, head), j)",
          "pending_.row(books.lane(0, at.layer, head), j)",
          ["testing/store_contract", CACHE, EDGES, CONTRACT, ANY_ORDER]),
    Fault("weights of the last step stay", "attention/pending_weights.hpp",
          "std::fill(begun_.begin(), begun_.end(), std::uint8_t{0});", "",
          ["policies/h2o", CONTRACT]),
    Fault("query_weight reversed", "attention/pending_weights.hpp",
          "query_weight(queries - 1 - j)", "query_weight(j)", [CACHE, CONTRACT, ANY_ORDER]),
    Fault("query_weight reversed in a prompt", "attention/prompt_attention.hpp",
          "query_weight_of(policy, n - 1 - i)", "query_weight_of(policy, i)",
          ["policies/snapkv", "policies/tova"]),
    Fault("decay applied per call, not per query", "policies/decayed_h2o.hpp",
          "state.mass * power(factor, queries)", "state.mass * factor", ["policies/h2o"]),
    Fault("mean not divided", "attention/gqa.hpp",
          "reduction == gqa_reduction::mean && member", "false && member",
          ["attention/decode_attention", CACHE, ANY_ORDER]),
    Fault("maximum of a group is its sum", "attention/gqa.hpp",
          "} else if (reduction == gqa_reduction::max) {", "} else if (false) {",
          ["attention/decode_attention", CACHE, ANY_ORDER]),
    # ---------------------------------------------------------------- attention
    Fault("wrong KV head for a query head: keys", "attention/query_attention.hpp",
          "index_t const kv_head = head / group;\n      attended_lane",
          "index_t const kv_head = head % kv_heads;\n      attended_lane",
          [CACHE, "policies/h2o", REFERENCE, CONTRACT]),
    Fault("wrong KV head for a query head: values", "attention/query_attention.hpp",
          "index_t const kv_head = head / group;\n      std::span<float const>",
          "index_t const kv_head = head % kv_heads;\n      std::span<float const>",
          [CACHE, REFERENCE, CONTRACT]),
    Fault("a step's tokens see later ones", "attention/step_attention.hpp",
          "static_cast<std::size_t>(step.count - 1 - j)", "std::size_t{0}",
          [CACHE, "policies/tova", CONTRACT, ANY_ORDER]),
    Fault("a prompt's tokens see the next one", "attention/prompt_attention.hpp",
          "visible(in_order.data(), static_cast<std::size_t>(i) + 1)",
          "visible(in_order.data(), std::min(size, static_cast<std::size_t>(i) + 2))",
          ["policies/snapkv", "policies/h2o", REFERENCE, CONTRACT]),
    Fault("softmax sums before it is done", "attention/decode_attention.hpp",
          "    sum += logit;\n", "    sum = logit;\n",
          [CACHE, "policies/h2o", REFERENCE, CONTRACT]),
    Fault("softmax without subtracting the maximum", "attention/decode_attention.hpp",
          "std::exp(logit - largest)", "std::exp(logit)",
          ["attention/decode_attention", REFERENCE, CONTRACT]),
    Fault("top-K keeps one too few", "attention/top_k.hpp",
          "always_last ? count - 1 : count;", "always_last ? count - 1 : count - 1;",
          ["attention/top_k", REFERENCE]),
    Fault("top-K counts its own token on top", "attention/top_k.hpp",
          "always_last ? count - 1 : count;", "count;",
          ["attention/top_k", REFERENCE]),
    Fault("gather in the wrong order", "eviction/compact.hpp",
          "T* const to = view(sequence, kv_head, i);",
          "T* const to = view(sequence, kv_head, static_cast<index_t>(order.size()) - 1 - i);",
          ["eviction/compact", CONTRACT]),
    Fault("the matrix product in the wrong order", "eviction/compact.hpp",
          "T* const to = view(sequence, kv_head, static_cast<index_t>(i));",
          "T* const to = view(sequence, kv_head, static_cast<index_t>(order.size() - 1 - i));",
          ["eviction/compact", CONTRACT]),
    # ---------------------------------------------------------------- positions
    Fault("the policy's rotary position ignored", "step_tokens.hpp",
          "slots.rotary[slot] = books.policy().rotary_position(slots.state(slot));", "",
          ["policies/sentinel", EDGES]),
    Fault("the position is used where the rotary one belongs", "attention/key_storage.hpp",
          "turn(token.rotary_position)", "turn(token.position)",
          ["attention/key_storage", CACHE, EDGES, REFERENCE, ANY_ORDER]),
    Fault("rope turns the other way", "positions/rope.hpp",
          "      to[i * step] = x * cosine[i] - y * sine[i];\n"
          "      to[i * step + partner] = x * sine[i] + y * cosine[i];",
          "      to[i * step] = x * cosine[i] + y * sine[i];\n"
          "      to[i * step + partner] = y * cosine[i] - x * sine[i];",
          ["positions/rope"]),
    Fault("rope pairs swapped", "positions/rope.hpp",
          "index_t const step = pairs_ == rope_pairs::adjacent ? 2 : 1;\n"
          "    index_t const partner = pairs_ == rope_pairs::adjacent ? 1 : pairs;",
          "index_t const step = pairs_ != rope_pairs::adjacent ? 2 : 1;\n"
          "    index_t const partner = pairs_ != rope_pairs::adjacent ? 1 : pairs;",
          ["positions/rope"]),
    Fault("sinks shifted by one too far", "attention/key_storage.hpp",
          "lane.positions.back() - (count - 1)", "lane.positions.back() - count",
          ["positions/rope", "attention/key_storage", CACHE, REFERENCE,
           CONTRACT, ANY_ORDER]),
    # ---------------------------------------------------------------- policies
    Fault("window off by one", "policies/sliding_window.hpp", "return size;", "return size + 1;",
          ["policies/sliding_window"]),
    Fault("the window's prompt mask off by one", "policies/sliding_window.hpp",
          "query - key <= size", "query - key < size", ["policies/sliding_window", CONTRACT]),
    Fault("sinks not protected", "policies/streaming_llm.hpp", "return sinks; }", "return 0; }",
          ["policies/streaming_llm"]),
    Fault("TOVA protects the newest", "policies/tova.hpp", "protect_newest ? 1 : 0", "1",
          ["policies/tova"]),
    Fault("TOVA adds up", "policies/tova.hpp", "state.weight = weight;", "state.weight += weight;",
          ["policies/tova"]),
    Fault("H2O forgets", "policies/h2o.hpp", "state.mass += weight;", "state.mass = weight;",
          ["policies/h2o"]),
    Fault("per age: off by one", "policies/h2o_per_age.hpp", "slot.position + 1)",
          "slot.position + 2)", ["policies/h2o"]),
    Fault("mask simulation: hidden scores stay", "policies/h2o_mask_simulation.hpp",
          "if (!chosen) state.mass = 0.0F;", "", ["policies/h2o"]),
    Fault("SnapKV pools by the tokens there are", "policies/snapkv.hpp",
          "sum / static_cast<float>(kernel)", "sum / static_cast<float>(last - first + 1)",
          ["policies/snapkv"]),
    Fault("SnapKV's window votes for one query more", "policies/snapkv.hpp",
          "later < window ? 1.0F", "later <= window ? 1.0F", ["policies/snapkv", ANY_ORDER]),
    Fault("SnapKV listens after the prompt", "policies/snapkv.hpp",
          "if (lane.ends_prompt || then == after_prompt::h2o) state.votes",
          "state.votes", ["policies/snapkv", ANY_ORDER]),
    Fault("key norm keeps the largest", "policies/key_norm.hpp", "return -state.squared_norm;",
          "return state.squared_norm;", ["policies/key_norm"]),
    Fault("key norm of one head only", "policies/key_norm.hpp",
          "state.squared_norm += squared_norm;", "state.squared_norm = squared_norm;",
          ["policies/key_norm"]),
    Fault("the stride doubles twice", "policies/strided_doubling.hpp", "++state.doublings;",
          "state.doublings += 2;", ["policies/strided"]),
    Fault("the grid is off by one", "policies/strided.hpp", "return position % interval == phase;",
          "return (position + 1) % interval == phase;", ["policies/strided"]),
    Fault("closing sentinels leave", "policies/sentinel.hpp",
          " && state.role != part::closing;", ";", ["policies/sentinel"]),
    Fault("pyramid: one token too many is handed out", "policies/adaptors/pyramid.hpp",
          "ahead < left ? 1 : 0", "ahead <= left ? 1 : 0", ["policies/adaptors/pyramid"]),
    Fault("pyramid: of equal remainders the upper layer wins", "policies/adaptors/pyramid.hpp",
          "other == own && l < layer", "other == own && l > layer",
          ["policies/adaptors/pyramid"]),
    Fault("Ada-KV: the paper's floor in place of the code's", "policies/adaptors/ada_kv.hpp",
          "reading == ada_reading::paper ? whole - share", "true ? whole - share",
          ["policies/adaptors/ada_kv"]),
    Fault("delayed: off by one", "policies/adaptors/delayed.hpp",
          "lane.newest - slot.position < queries", "lane.newest - slot.position <= queries",
          ["policies/adaptors/delayed"]),
    Fault("blocks compete before they are complete", "eviction/select.hpp",
          "granule - 1 <= view.newest", "granule - 1 <= view.newest + 1",
          ["policies/adaptors/in_blocks"]),
    Fault("blocks compete with their lowest priority", "eviction/select.hpp",
          "std::max(known->rank, rank)", "std::min(known->rank, rank)",
          ["policies/adaptors/in_blocks"]),
    # ---------------------------------------------------------------- the controller
    Fault("reset after the wrong product", "controller/gru.hpp",
          "input.candidate + reset * state.candidate",
          "reset * (input.candidate + state.candidate)", ["controller/gru"]),
    Fault("update gate the other way round", "controller/gru.hpp",
          "(Real{1} - update) * candidate + update * previous",
          "update * candidate + (Real{1} - update) * previous", ["controller/gru"]),
    Fault("Cho's reset gate lacks its bias", "controller/gru.hpp",
          "scratch[unit] + hidden_bias[unit])", "scratch[unit])", ["controller/gru"]),
    Fault("the last of a row is left out", "controller/linear.hpp",
          "i + k < count; ++k", "i + k + 1 < count; ++k", ["controller/gru"]),
    Fault("distance from the wrong end", "controller/score_head.hpp",
          "newest - token", "token", ["controller/controller"]),
    Fault("length 0 at the first token", "controller/score_head.hpp",
          "newest > 1 ? newest : 1", "newest + 1", ["controller/controller"]),
    Fault("bilinear matrix transposed", "controller/score_head.hpp",
          "newest[k] * row[j]", "newest[j] * row[j]", ["controller/controller"]),
    Fault("embedding scaled by its norm", "controller/input_products.hpp",
          "dot(x, x, weights.inputs) / static_cast<float>(weights.inputs)",
          "dot(x, x, weights.inputs)", ["controller/controller"]),
    Fault("a rejected draft's history stays", "controller/controller.hpp",
          "keep(state.values, width());", "", ["controller/controller"]),
    Fault("a rejected draft's z stays", "controller/controller.hpp",
          "state.recent.resize(size(1 + count - state.first)",
          "state.recent.resize(size(1 + state.first)",
          ["controller/controller"]),
    Fault("tanh without its sign", "controller/tanh.hpp", "bits & ~0x7FFFFFFF", "0",
          ["controller/tanh"]),
    Fault("a NaN weight is taken", "controller/weights.hpp",
          "& 0x7F800000U) == 0x7F800000U", "& 0x7F800000U) == 0x7F800001U", ["controller/weights"]),
    Fault("a tensor of no use is taken", "controller/make_weights.hpp", "if (!needed) {",
          "if (false) {", ["controller/weights"]),
    Fault("votes of K tokens", "controller/labels.hpp", "options_.count / 2", "options_.count",
          ["controller/labels"]),
    Fault("every query counts for a token", "controller/labels.hpp",
          "judges[j] += judges[j + 1];", "judges[j] = judges[j + 1] + 1;", ["controller/labels"]),
    Fault("a query votes for itself", "controller/labels.hpp",
          "options_.exclude_self ? tokens - 1 : tokens", "tokens", ["controller/labels"]),
    Fault("cached tokens are rebuilt", "rebuild/choose.hpp", "is_cached[p] == 0",
          "is_cached[p] <= 1", ["rebuild/choose"]),
    Fault("the worst are rebuilt", "rebuild/choose.hpp", "std::greater<>{}", "std::less<>{}",
          ["rebuild/choose"]),
    Fault("a placed token has no score", "step_tokens.hpp", "if (scores.has(position)) {",
          "if (scores.has(position + 1)) {", ["rebuild/placing_store"]),
    Fault("older scores wait for placed tokens", "token_scores.hpp", "(o + 1) * tokens - fresh",
          "o * tokens", ["rebuild/placing_store"]),
    Fault("a logit is not cut", "policies/attentive_release.hpp", "cut = largest_logit;", "cut = logit;",
          ["policies/attentive_release"]),
    Fault("newest tokens unprotected", "policies/adaptive_release.hpp",
          "protected_newest(lane_view) const noexcept { return recent; }",
          "protected_newest(lane_view) const noexcept { return 0; }",
          ["policies/adaptive_release"]),
    Fault("a fork takes turns of its own", "rebuild/rebuild_stage.hpp",
          "phase(to) = phase(from);", "phase(to) = to;", ["rebuild/snapshot"]),
    Fault("a loaded row takes turns of its own", "rebuild/rebuild_stage.hpp",
          "phase(row) = saved.phase;", "phase(row) = row;", ["rebuild/snapshot"]),
    Fault("a loaded row loses who was back", "rebuild/rebuild_stage.hpp",
          "i < saved.guests.size(); ++i", "i + 1 < saved.guests.size(); ++i", ["rebuild/snapshot"]),
    Fault("a guest is loaded into another slot", "rebuild/rebuild_stage.hpp",
          "return free == slot;", "return free != slot;", ["rebuild/snapshot"]),
    Fault("a loaded row does not know who is released", "rebuild/past_tokens.hpp",
          "released_ += 1 - cached_[p];", "", ["rebuild/snapshot"]),
    Fault("a loaded tier forgets the order", "rebuild/host_tier.hpp",
          "for (token const& entry : order_) {\n      if (entry.row == row &&",
          "for (auto const& [entry, kv] : held_) {\n      if (entry.row == row &&",
          ["rebuild/snapshot"]),
    # ---------------------------------------------------------------- pages
    Fault("pages: a shared page is written", "stores/page_tables.hpp",
          "if (owns_page(row, number)) return;\n    index_t& here",
          "if (table_[entry(row, number)] != no_page) return;\n    index_t& here", PAGES),
    Fault("pages: a copy lacks V", "stores/paged_store.hpp",
          "data : {&keys_, &values_}", "data : {&keys_, &keys_}", PAGES),
    Fault("pages: a page goes with the first token", "stores/page_tables.hpp",
          "if (--tokens_[at] > 0) continue;", "--tokens_[at];", PAGES),
    Fault("pages: a page goes with its first holder", "stores/page_pool.hpp",
          "if (--holders_[static_cast<std::size_t>(page)] > 0) return false;",
          "--holders_[static_cast<std::size_t>(page)];", PAGES),
    Fault("pages: a fork does not hold", "stores/page_tables.hpp",
          "if (shared != no_page) pool_.share(shared);", "", PAGES),
    Fault("pages: compaction moves K only", "stores/paged_store.hpp",
          "{keys(layer), values(layer)}", "{keys(layer), keys(layer)}", PAGES),
    Fault("pages: compaction closes a gap for the table alone", "stores/page_tables.hpp",
          "now = number[size(now / page_size_)] * page_size_ + now % page_size_;", "", PAGES),
    Fault("pages: an empty row has one in the lists", "stores/page_lists.hpp",
          "while (count > 0 &&", "while (count > 1 &&", PAGES),
    Fault("pages: rejected drafts keep them", "cached_rows.hpp",
          "if (!returning.active() && !drafted) return;", "if (!returning.active()) return;",
          ["testing/paging_store_contract", "stores/paged_cache"]),
    Fault("pages: a guest is computed again in a shared page", "stores/page_upkeep.hpp",
          "if (!here.empty()) reserve_in(", "if (guests < 0) reserve_in(", ["stores/paged_cache"]),
    Fault("pages: a prompt takes what it will not keep", "stores/page_upkeep.hpp",
          "std::min(most_of_prompt(books, lane, whole.count), books.slots())",
          "std::min(whole.count, books.slots())", ["stores/paged_cache"]),
    Fault("pages: guests take them that cannot come", "stores/page_upkeep.hpp",
          "std::max(std::min(guests, released) - static_cast<index_t>(here.size()), 0)", "guests",
          ["stores/paged_cache"]),
    Fault("pages: a chunk is scattered over them", "eviction/free_slots.hpp",
          "std::sort(first, chosen, std::greater<>{});", "", ["stores/paged_cache"]),
    Fault("pages: each free slot is looked at", "stores/page_upkeep.hpp",
          "if (has_holes && !std::all_of(next.begin(), next.end(), owned)) {", "{",
          ["stores/page_upkeep"]),
    Fault("more of a prompt stays than there are slots", "eviction/lane_table.hpp",
          "if (positions.size() > static_cast<std::size_t>(slots())) {", "if (false) {",
          ["eviction/ledger"]),
    Fault("pages: a closed row keeps them", "cached_rows.hpp",
          "if constexpr (!by_slot || paging_store<Store>) {", "if constexpr (!by_slot) {",
          ["stores/paged_cache"]),
    # ---------------------------------------------------------------- files and stores
    Fault("a wrong checksum is accepted", "eviction/snapshot_file.hpp", "stored != computed || ",
          "", ["eviction/snapshot_file"]),
    Fault("a fork does not copy V", "cached_rows.hpp", "copy_row(kv_view_of(store.values(layer)), "
          "from, to);", "", ["testing/store_contract", CONTRACT]),
]


def links_all_policies(root, test):
    """The list of all policies is compiled apart, which takes longer than any test."""
    return "every_policy.hpp" in (root / "tests" / f"{test}_test.cpp").read_text()


class Bench:
    """A copy of the headers and tests, in which one fault at a time is compiled and run."""

    def __init__(self, folder):
        self.folder = folder
        for part in ("include", "tests"):
            shutil.copytree(ROOT / part, folder / part)
        self.objects = folder / "objects"
        self.objects.mkdir()
        self.compiler = [os.environ.get("CXX", "c++")]
        if shutil.which("ccache"):
            self.compiler.insert(0, "ccache")
        # so that both copies share what ccache holds
        self.environment = dict(os.environ, CCACHE_BASEDIR=str(folder), CCACHE_NOHASHDIR="1")

    def command(self, arguments, limit=None):
        try:
            done = subprocess.run(arguments, cwd=self.folder, env=self.environment, timeout=limit,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except subprocess.TimeoutExpired:
            return 124, f"ran longer than {limit} s"
        return done.returncode, done.stdout.decode(errors="replace")

    def compile(self, source, name):
        code, out = self.command(
            self.compiler + FLAGS + ["-c", source, "-o", str(self.objects / name)])
        if code != 0:
            raise RuntimeError(f"{source} does not compile:\n{out[-2000:]}")
        return str(self.objects / name)

    def passes(self, test):
        """None if the test passes, else why it does not."""
        if not (self.objects / "main.o").exists():
            self.compile("tests/doctest_main.cpp", "main.o")
        source = f"tests/{test}_test.cpp"
        objects = [str(self.objects / "main.o"), self.compile(source, "test.o")]
        if links_all_policies(self.folder, test):
            objects.append(self.compile("tests/support/every_policy_test.cpp", "policies.o"))
        program = str(self.objects / "program")
        code, out = self.command([self.compiler[-1]] + objects + ["-o", program])
        if code != 0:
            raise RuntimeError(f"{test} does not link:\n{out[-2000:]}")
        code, out = self.command([program], RUN_LIMIT_S)
        return None if code == 0 else out

    def seed(self, fault):
        """Seeds the fault; gives a function that takes it out again, None if it does not apply."""
        header = self.folder / "include" / "adore" / fault.header
        sound = header.read_text() if header.exists() else ""
        if not fault.old or fault.old not in sound or fault.old == fault.new:
            return None
        header.write_text(sound.replace(fault.old, fault.new, 1))
        return lambda: header.write_text(sound)


def first_line_about(output):
    for line in output.splitlines():
        if "ERROR" in line or "longer than" in line or "CRASHED" in line or "Assertion" in line:
            return line.strip().replace("include/adore/", "")[:110]
    return "the program ended with an error"


def try_fault(bench, fault, known):
    remove = bench.seed(fault)
    if remove is None:
        return "does not apply", f"{fault.header} lacks: {fault.old.strip().splitlines()[0]}"
    try:
        tried = [test for test in fault.tests if test in known]
        for test in tried:
            output = bench.passes(test)
            if output is not None:
                return "caught", f"{test}: {first_line_about(output)}"
        if not tried:
            return "not tried", "none of its tests is there and sound"
        return "NOT CAUGHT", "by " + ", ".join(tried)
    except RuntimeError as error:
        return "does not apply", str(error)
    finally:
        remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a fault's name or header")
    parser.add_argument("--list", action="store_true", help="print the faults and stop")
    parser.add_argument("--quick", action="store_true",
                        help="leave out the tests that link the list of all policies")
    parser.add_argument("-j", type=int, default=2, help="faults at a time (2)")
    parser.add_argument("--minutes", type=float, default=0, help="begin no fault after so long")
    options = parser.parse_args()
    faults = [f for f in FAULTS if options.only in f.name or options.only in f.header]
    if not faults:
        sys.exit(f"no fault has '{options.only}' in its name or header")
    if options.list:
        for fault in faults:
            print(f"{fault.header}: {fault.name} [{', '.join(fault.tests)}]")
        return 0

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        benches = queue.Queue()
        for number in range(options.j):
            benches.put(Bench(pathlib.Path(scratch) / str(number)))

        def with_bench(work, *arguments):
            if options.minutes and time.monotonic() - begin > 60 * options.minutes:
                return "not tried", "no time was left"
            bench = benches.get()
            try:
                return work(bench, *arguments)
            finally:
                benches.put(bench)

        with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
            # a test that fails anyway would "catch" everything
            names = sorted({test for fault in faults for test in fault.tests
                            if (ROOT / "tests" / f"{test}_test.cpp").exists()
                            and not (options.quick and links_all_policies(ROOT, test))})
            known = set()

            def baseline(bench, test):
                try:
                    return test, bench.passes(test)
                except RuntimeError as error:
                    return test, str(error)

            for test, problem in pool.map(lambda name: with_bench(baseline, name), names):
                if problem is None:
                    known.add(test)
                else:
                    print(f"left out: {test} fails without any fault\n{problem[-600:]}", flush=True)
            results = []
            pending = {pool.submit(with_bench, try_fault, fault, known): fault for fault in faults}
            for done in concurrent.futures.as_completed(pending):
                verdict, detail = done.result()
                results.append(verdict)
                print(f"{verdict:15} {pending[done].header}: {pending[done].name} ({detail})",
                      flush=True)
    summary = {verdict: results.count(verdict) for verdict in sorted(set(results))}
    print(", ".join(f"{count} {verdict}" for verdict, count in summary.items()),
          f"in {time.monotonic() - begin:.0f} s")
    return 0 if set(results) == {"caught"} and len(known) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
