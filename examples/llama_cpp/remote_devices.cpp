// SPDX-License-Identifier: Apache-2.0
#include "llama_cpp/remote_devices.hpp"

#include <stdexcept>

namespace llama_cpp_example {

ggml_backend_reg_t remote_devices(std::string const& server) {
  ggml_backend_reg_t const rpc = ggml_backend_reg_by_name("RPC");
  using add_server = ggml_backend_reg_t (*)(char const* endpoint);
  auto const add = rpc == nullptr ? nullptr
                                  : reinterpret_cast<add_server>(ggml_backend_reg_get_proc_address(
                                        rpc, "ggml_backend_rpc_add_server"));
  if (add == nullptr) {
    throw std::runtime_error("this llama.cpp has no RPC: build it with -DGGML_RPC=ON");
  }
  ggml_backend_reg_t const devices = add(server.c_str());
  if (devices == nullptr) throw std::runtime_error("the RPC server " + server + " has no device");
  return devices;
}

void add_remote_devices(std::string const& server) {
  ggml_backend_register(remote_devices(server));
}

}  // namespace llama_cpp_example
