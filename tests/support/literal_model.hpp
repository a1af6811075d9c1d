// SPDX-License-Identifier: Apache-2.0
// A slow, literal model of every policy, to compare the library with. It is written from the
// published definitions alone, by sets and sorting, and includes nothing of the library.
#pragma once

#include "literal_attention_policies.hpp"
#include "literal_budgets.hpp"
#include "literal_lane.hpp"
#include "literal_order.hpp"
#include "literal_sentinel.hpp"
#include "literal_sets.hpp"
#include "literal_static_policies.hpp"
