// SPDX-License-Identifier: Apache-2.0
// A server of llama.cpp's RPC backend with one processor device, for the tests on loopback:
// rpc_server HOST:PORT. Runs until it is ended; returns 77 if llama.cpp was built without RPC.
#include <ggml-backend.h>

#include <cstddef>
#include <cstdio>

int main(int count, char** arguments) {
  if (count != 2) return 2;
  ggml_backend_reg_t const rpc = ggml_backend_reg_by_name("RPC");
  if (rpc == nullptr) {
    std::printf("skipped: this llama.cpp has no RPC\n");
    return 77;
  }
  using start_server = void (*)(char const* endpoint,
                                char const* cache_folder,
                                std::size_t threads,
                                std::size_t devices,
                                ggml_backend_dev_t*);
  auto const start = reinterpret_cast<start_server>(
      ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_start_server"));
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  start(arguments[1], nullptr, 1, 1, &device);
  return 0;
}
