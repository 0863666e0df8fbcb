// Where the steps of a rank are computed, one after another in the order in which they are submitted. On a thread of
// its own a second step can be submitted while the first is computed, and begins without anybody being asked: that is
// what lets the scheduler plan and commit while the model computes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "base/result.h"

namespace sluice::engine {

// Used by one thread, the scheduler's. An error is the step's; steps after it are not computed and have the same error.
class StepDevice {
 public:
  using Step = std::function<Result<void>()>;

  virtual ~StepDevice() = default;
  // Steps that may be submitted and not waited for: 1, or 2 where one can be computed while the next one waits.
  virtual int depth() const = 0;
  virtual void submit(Step step) = 0;
  // Until the first step not waited for is computed. A step takes as long as it takes: one that hangs is found by
  // whoever watches this process's Pulse.
  virtual Result<void> wait() = 0;
};

// Computes in submit().
class InlineDevice final : public StepDevice {
 public:
  int depth() const override { return 1; }
  void submit(Step step) override;
  Result<void> wait() override;

 private:
  bool submitted_ = false;
  Result<void> result_;
};

// Computes on a thread of its own, which sleeps while there is no step.
class ThreadDevice final : public StepDevice {
 public:
  ThreadDevice();
  // A step that is computed is waited for, one that has not begun is dropped.
  ~ThreadDevice() override;
  ThreadDevice(const ThreadDevice&) = delete;
  ThreadDevice& operator=(const ThreadDevice&) = delete;

  int depth() const override { return 2; }
  void submit(Step step) override;
  Result<void> wait() override;

 private:
  void serve();

  // Guarded by mu_, under which nothing is computed.
  std::mutex mu_;
  std::condition_variable submitted_, computed_;
  std::deque<Step> steps_;            // not begun
  std::deque<Result<void>> results_;  // not waited for
  int open_ = 0;                      // submitted and not waited for
  bool stop_ = false;

  std::thread thread_;  // last: it uses the rest
};

}  // namespace sluice::engine
