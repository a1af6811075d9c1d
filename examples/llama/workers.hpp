// SPDX-License-Identifier: Apache-2.0
// A few threads that wait for parts of one loop: the same part always does the same work, so
// results do not depend on their number.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace llama_example {

class workers {
 public:
  explicit workers(int threads) {
    for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
  }
  ~workers() {
    stop_ = true;
    round_.fetch_add(1);
    round_.notify_all();
  }
  workers(workers const&) = delete;
  workers& operator=(workers const&) = delete;

  int count() const noexcept { return static_cast<int>(threads_.size()) + 1; }

  /// Calls work(i) for each i in [0, count); returns when all are done, or throws what the first of
  /// them threw.
  void for_each(int count, std::function<void(int)> const& work) {
    if (threads_.empty() || count == 1) {
      for (int i = 0; i < count; ++i) work(i);
      return;
    }
    work_ = &work;
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(threads_.size());
    round_.fetch_add(1);
    round_.notify_all();
    take();
    for (int left = busy_; left > 0; left = busy_) busy_.wait(left);
    if (failed_.exchange(false)) std::rethrow_exception(failure_);
  }

 private:
  void take() noexcept {
    for (int i = next_++; i < count_; i = next_++) {
      try {
        (*work_)(i);
      } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
      }
    }
  }
  void serve(int) {
    for (int seen = 0;;) {
      round_.wait(seen);
      seen = round_;
      if (stop_) return;
      take();
      if (--busy_ == 0) busy_.notify_one();
    }
  }

  std::function<void(int)> const* work_ = nullptr;
  int count_ = 0;
  std::atomic<int> next_ = 0, busy_ = 0, round_ = 0;
  std::atomic<bool> stop_ = false, failed_ = false;
  std::exception_ptr failure_;
  std::vector<std::jthread> threads_;
};

}  // namespace llama_example
