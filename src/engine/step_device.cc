#include "engine/step_device.h"

#include <pthread.h>

#include <exception>
#include <optional>
#include <utility>

#include "base/check.h"

namespace sluice::engine {
namespace {

// Libraries below may throw, no memory most of all; whoever waits is told.
Result<void> compute(const StepDevice::Step& step) {
  try {
    return step();
  } catch (const std::exception& e) {
    return Error{ErrorCode::kInternal, e.what()};
  }
}

}  // namespace

void InlineDevice::submit(Step step) {
  SLUICE_CHECK(!submitted_, "a step is submitted while another one is not waited for");
  submitted_ = true;
  if (result_.ok()) result_ = step();
}

Result<void> InlineDevice::wait() {
  SLUICE_CHECK(std::exchange(submitted_, false), "no step to wait for");
  return result_;
}

ThreadDevice::ThreadDevice() : thread_([this] { serve(); }) {}

ThreadDevice::~ThreadDevice() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  submitted_.notify_one();
  thread_.join();
}

void ThreadDevice::submit(Step step) {
  {
    const std::lock_guard lock(mu_);
    SLUICE_CHECK(open_ < depth(), "{} steps are not waited for", open_);
    ++open_;
    steps_.push_back(std::move(step));
  }
  submitted_.notify_one();
}

Result<void> ThreadDevice::wait() {
  std::unique_lock lock(mu_);
  SLUICE_CHECK(open_ > 0, "no step to wait for");
  computed_.wait(lock, [this] { return !results_.empty(); });
  --open_;
  Result<void> result = std::move(results_.front());
  results_.pop_front();
  return result;
}

void ThreadDevice::serve() {
  ::pthread_setname_np(::pthread_self(), "steps");
  Result<void> last;  // once it is an error it stays
  std::unique_lock lock(mu_);
  for (;;) {
    submitted_.wait(lock, [this] { return stop_ || !steps_.empty(); });
    if (stop_) return;
    Step step = std::move(steps_.front());
    steps_.pop_front();
    lock.unlock();
    if (last.ok()) last = compute(step);
    step = nullptr;
    lock.lock();
    results_.push_back(last);
    computed_.notify_one();
  }
}

}  // namespace sluice::engine
