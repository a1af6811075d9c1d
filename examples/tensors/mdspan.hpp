// SPDX-License-Identifier: Apache-2.0
// std::mdspan, or whatever has its members, as keys or values of a cache.
#pragma once

#include <adore/kv_view.hpp>
#include <adore/types.hpp>

#include <concepts>
#include <cstddef>

namespace engine {

/// What is used of C++23's std::mdspan (and of its reference implementation).
template <class M>
concept mdspan_of_rank_4 = M::rank()
== 4 && requires(M const& span, std::size_t dim) {
  { span.data_handle() } -> std::same_as<typename M::element_type*>;
  span.extent(dim);
  span.stride(dim);
};

/// Gives the span a namespace in which the library finds `adore_kv_view`. The memory is the
/// engine's and must outlive the store.
template <mdspan_of_rank_4 M>
struct kv_mdspan {
  M span;  ///< [sequence, kv_head, slot, channel], any layout with strides
};

template <class M>
adore::kv_view<typename M::element_type> adore_kv_view(kv_mdspan<M> const& keys_or_values) {
  M const& span = keys_or_values.span;
  auto const extent = [&](std::size_t dim) {
    return static_cast<adore::index_t>(span.extent(dim));
  };
  auto const stride = [&](std::size_t dim) {
    return static_cast<adore::stride_t>(span.stride(dim));
  };
  return {span.data_handle(),
          extent(0),
          extent(1),
          extent(2),
          extent(3),
          stride(0),
          stride(1),
          stride(2),
          stride(3)};
}

}  // namespace engine
