// SPDX-License-Identifier: Apache-2.0
// The whole device side: every stage on a stream.
#pragma once

#include "adore/gpu/append.cuh"
#include "adore/gpu/append_rebuilt.cuh"
#include "adore/gpu/best_of.cuh"
#include "adore/gpu/compact.cuh"
#include "adore/gpu/compact_ledger.cuh"
#include "adore/gpu/decide.cuh"
#include "adore/gpu/decode_attention.cuh"
#include "adore/gpu/device_buffer.cuh"
#include "adore/gpu/device_controller.cuh"
#include "adore/gpu/device_ledger.cuh"
#include "adore/gpu/device_pages.cuh"
#include "adore/gpu/device_rebuild.cuh"
#include "adore/gpu/device_store.cuh"
#include "adore/gpu/device_tier.cuh"
#include "adore/gpu/error.cuh"
#include "adore/gpu/paged_view.cuh"
#include "adore/gpu/rope.cuh"
#include "adore/gpu/token_scores.cuh"
#include "adore/gpu/weights.cuh"
