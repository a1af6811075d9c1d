// SPDX-License-Identifier: Apache-2.0
// The whole host side of the library.
#pragma once

#include "adore/any_cache.hpp"
#include "adore/attention/decode_attention.hpp"
#include "adore/attention/top_k.hpp"
#include "adore/cache_options.hpp"
#include "adore/concepts.hpp"
#include "adore/eviction/ledger.hpp"
#include "adore/kv_cache.hpp"
#include "adore/kv_view.hpp"
#include "adore/order_key.hpp"
#include "adore/policies/every_policy.hpp"
#include "adore/policy_text.hpp"
#include "adore/positions/rope.hpp"
#include "adore/stores/host_store.hpp"
#include "adore/stores/view_store.hpp"
#include "adore/types.hpp"
