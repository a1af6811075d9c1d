// SPDX-License-Identifier: Apache-2.0
// The list of all policies. What runs over every policy (text names, tests, the comparison) runs
// over this list: a new policy is a new file and one line here.
#pragma once

#include "adore/policies/adaptive_release.hpp"
#include "adore/policies/attentive_release.hpp"
#include "adore/policies/decayed_h2o.hpp"
#include "adore/policies/dynamic_top_k.hpp"
#include "adore/policies/h2o.hpp"
#include "adore/policies/h2o_algorithm_1.hpp"
#include "adore/policies/h2o_mask_simulation.hpp"
#include "adore/policies/h2o_per_age.hpp"
#include "adore/policies/keep_all.hpp"
#include "adore/policies/key_norm.hpp"
#include "adore/policies/random.hpp"
#include "adore/policies/sentinel.hpp"
#include "adore/policies/sliding_window.hpp"
#include "adore/policies/snapkv.hpp"
#include "adore/policies/sparse_transformer.hpp"
#include "adore/policies/streaming_llm.hpp"
#include "adore/policies/strided.hpp"
#include "adore/policies/strided_doubling.hpp"
#include "adore/policies/tova.hpp"

namespace adore {

template <class... Policies>
struct policy_list {};

using every_policy = policy_list<keep_all,
                                 sliding_window,
                                 streaming_llm,
                                 strided,
                                 strided_doubling,
                                 h2o,
                                 decayed_h2o,
                                 h2o_per_age,
                                 h2o_mask_simulation,
                                 h2o_algorithm_1,
                                 tova,
                                 key_norm,
                                 random_reservoir,
                                 random_victim,
                                 snapkv,
                                 sentinel,
                                 sparse_transformer,
                                 dynamic_top_k,
                                 adaptive_release,
                                 attentive_release>;

}  // namespace adore
