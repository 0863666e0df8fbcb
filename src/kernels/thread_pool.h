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
  // They are begun in that order. What a body throws on the caller's thread goes on to the caller once the bodies that
  // run have returned; no other is begun. On another thread it ends the program.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) {
    divide(count, 0, [&](int64_t i, int64_t, int thread) { body(i, thread); });
  }

  // Calls body(begin, end, thread) for ranges that are [0, count) together, each of at most `grain` >= 1, by an order
  // that reads memory well: every thread begins with a run of its own, as long as the others', and goes on in it; who
  // has done his takes from the ends of the others'. So what lies in order is read in order, and what a thread asks for
  // ahead is mostly its own. Ranges end at multiples of `grain`, but for those where a run ends.
  template <class Body>
  void parallel_runs(int64_t count, int64_t grain, const Body& body) {
    divide(count, grain, body);
  }

 private:
  using Call = void (*)(const void* body, int64_t begin, int64_t end, int thread);
  struct Range {
    int64_t begin, end;
  };
  // What is left of a thread's run: its begin in the upper half, its end in the lower.
  struct alignas(64) Run {
    std::atomic<uint64_t> left{0};
  };

  // `grain` 0: one by one in their order.
  template <class Body>
  void divide(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    stay_one_thread();
    const int64_t step = grain > 0 ? grain : 1;
    if (count == 1 || workers_.empty()) {
      for (int64_t i = 0; i < count; i += step) {
        body(i, i + step < count ? i + step : count, 0);
        beat(0);
      }
      return;
    }
    run(
        count, grain,
        [](const void* self, int64_t begin, int64_t end, int thread) {
          (*static_cast<const Body*>(self))(begin, end, thread);
        },
        &body);
  }

  // oneDNN, which is built with OpenMP, must not start threads of its own, which would spin: said once by each thread,
  // since a rank may have a second one that takes turns with its first.
  static void stay_one_thread() {
    static thread_local bool said = false;
    if (!said) say_one_thread();
    said = true;
  }
  static void say_one_thread();

  void run(int64_t count, int64_t grain, Call call, const void* body);
  void drop_rest();  // of the job's pieces: those that nobody has taken
  void close();      // the job, for workers that come later; waits for those that are in it
  void work(int thread);
  Range take(int thread);  // the next for this thread; empty when there is none
  bool enter();
  void serve(int thread);

  // Waits for the next job look at a line of their own.
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  // Workers that are in the job, and kOpen while more may come. One that comes too late, because its core had something
  // else to do, is not waited for.
  static constexpr uint32_t kOpen = 1u << 31;
  alignas(64) std::atomic<uint32_t> inside_{0};
  // The job, written while no worker is inside and read by those that come in, with the line that they come in by.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};  // one by one
  std::vector<Run> runs_;                     // in runs, by thread
  std::vector<std::thread> workers_;
};

}  // namespace sluice::kernels
