// SPDX-License-Identifier: Apache-2.0
// A server of llama.cpp's RPC backend on loopback: a second device where there is only a processor.
#pragma once

#include "llama_cpp/remote_devices.hpp"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <ggml-backend.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

namespace llama_cpp_example::testing {

/// Runs as long as it lives. llama.cpp gives up the whole program if its server leaves first, so
/// models and contexts on it must go before.
class local_server {
 public:
  local_server() : port_(free_port()), address_("127.0.0.1:" + std::to_string(port_)) {
    process_ = fork();
    REQUIRE(process_ >= 0);
    if (process_ == 0) {
      int const nowhere = open("/dev/null", O_WRONLY);
      dup2(nowhere, STDOUT_FILENO);
      dup2(nowhere, STDERR_FILENO);
      execl(ADORE_RPC_SERVER, ADORE_RPC_SERVER, address_.c_str(), nullptr);
      _exit(1);
    }
    int tries = 0;
    while (!answers()) {
      REQUIRE(++tries < 200);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  ~local_server() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  local_server(local_server const&) = delete;
  local_server& operator=(local_server const&) = delete;
  local_server(local_server&&) = delete;
  local_server& operator=(local_server&&) = delete;

  ggml_backend_dev_t device() const {
    return ggml_backend_reg_dev_get(remote_devices(address_), 0);
  }

 private:
  static sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  static std::uint16_t free_port() {
    int const any = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    auto* const where = reinterpret_cast<sockaddr*>(&address);
    REQUIRE(bind(any, where, length) == 0);
    REQUIRE(getsockname(any, where, &length) == 0);
    close(any);
    return ntohs(address.sin_port);
  }
  bool answers() const {
    int const caller = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = loopback(port_);
    bool const connected =
        connect(caller, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    close(caller);
    return connected;
  }

  std::uint16_t port_;
  std::string address_;
  pid_t process_ = -1;
};

}  // namespace llama_cpp_example::testing
