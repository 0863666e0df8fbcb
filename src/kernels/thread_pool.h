// The threads that run one rank's kernels: a fixed number, the caller among them. Inside a running step a worker that
// runs out of work spins for at most 50 microseconds and then sleeps on a futex; an idle pool costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/pulse.h"

namespace sluice::kernels {

// Used by one thread, the rank's.
class ThreadPool {
 public:
  // `threads` >= 1 includes the caller.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(i, thread) once for every i in [0, count), on any thread in [0, size()), and returns when all are done.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) {
    if (count <= 0) return;
    stay_one_thread();
    if (count == 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; ++i) {
        body(i, 0);
        beat(0);
      }
      return;
    }
    run(
        count, [](const void* self, int64_t i, int thread) { (*static_cast<const Body*>(self))(i, thread); }, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t i, int thread);

  // oneDNN, which is built with OpenMP, must not start threads of its own, which would spin: said once by each thread,
  // since a rank may have a second one that takes turns with its first.
  static void stay_one_thread() {
    static thread_local bool said = false;
    if (!said) say_one_thread();
    said = true;
  }
  static void say_one_thread();

  void run(int64_t count, Call call, const void* body);
  void work(int thread);
  void serve(int thread);

  // The current job; written before generation_ advances.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> running_{0};  // workers that have not finished the job
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace sluice::kernels
