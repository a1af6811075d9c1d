// SPDX-License-Identifier: Apache-2.0
// Devices of other machines, through llama.cpp's RPC backend.
#pragma once

#include <ggml-backend.h>

#include <string>

namespace llama_cpp_example {

/// The devices of an RPC server, `ggml_backend_reg_dev_get(it, 0)` and so on. The protocol has
/// neither encryption nor a password. llama.cpp ends the program if the server does not answer.
///
/// @param server  "host:port"
/// @throws std::runtime_error if llama.cpp was built without RPC, or the server has no device
ggml_backend_reg_t remote_devices(std::string const& server);

/// Makes them known, before a model is loaded: `n_gpu_layers` then counts the layers that go there,
/// their K/V included.
void add_remote_devices(std::string const& server);

}  // namespace llama_cpp_example
