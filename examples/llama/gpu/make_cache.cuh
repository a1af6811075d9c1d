// SPDX-License-Identifier: Apache-2.0
// The definition of `make_device_cache`, for the sources that compile the caches of one element
// type. They take minutes: attention is compiled for each policy and head size.
#pragma once

#include "llama/gpu/device_policies.hpp"
#include "llama/gpu/policy_cache.cuh"
#include <adore/policy_text.hpp>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace llama_example::gpu {

/// For the speed of large models; the comparison of all policies needs heads of 64 in float.
template <class P>
inline constexpr bool is_for_speed =
    std::is_same_v<P, adore::keep_all> || std::is_same_v<P, adore::sliding_window> ||
    std::is_same_v<P, adore::h2o> || std::is_same_v<P, adore::adaptive_release>;
template <class T, int Channels, class P>
inline constexpr bool is_compiled = why_host_only<P>() == nullptr &&
                                    (is_for_speed<P> ||
                                     (Channels == 64 && std::is_same_v<T, float>));

template <class T>
std::unique_ptr<device_cache<T>> make_device_cache(std::string_view text,
                                                   adore::cache_request const& request,
                                                   device_cache_options const& options) {
  std::unique_ptr<device_cache<T>> cache;
  adore::with_policy(text, request.budget, [&](auto const& policy) {
    using P = std::remove_cvref_t<decltype(policy)>;
    constexpr char const* reason = why_host_only<P>();
    if constexpr (reason != nullptr) {
      throw std::invalid_argument(std::string(P::name) + " runs on the host only: it " + reason);
    } else {
      adore::kv_shape const shape{request.rows,
                                  request.layers,
                                  request.kv_heads,
                                  adore::slots_for(policy, request, 1 + options.rebuild.count),
                                  request.channels};
      if constexpr (is_compiled<T, 64, P>) {
        if (request.channels == 64) {
          cache = std::make_unique<policy_cache<T, 64, P>>(shape, policy, request.tokens, options);
        }
      }
      if constexpr (is_compiled<T, 128, P>) {
        if (request.channels == 128) {
          cache = std::make_unique<policy_cache<T, 128, P>>(shape, policy, request.tokens, options);
        }
      }
      if (cache == nullptr) {
        throw std::invalid_argument(std::string(P::name) + " is not compiled for heads of " +
                                    std::to_string(request.channels) + " channels of " +
                                    (std::is_same_v<T, float> ? "float" : "bfloat16") +
                                    ": all policies are for 64 channels of float; keep_all, "
                                    "sliding_window, h2o and adaptive_release also for 128 and "
                                    "for bfloat16");
      }
    }
  });
  return cache;
}

}  // namespace llama_example::gpu
