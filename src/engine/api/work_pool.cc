#include "engine/api/work_pool.h"

#include <pthread.h>

namespace sluice::engine {

WorkPool::WorkPool(size_t threads) {
  for (size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "tokenizer");
      serve();
    });
  }
}

WorkPool::~WorkPool() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void WorkPool::post(std::function<void()> work) {
  {
    const std::lock_guard lock(mu_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_one();
}

void WorkPool::serve() {
  for (;;) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    auto work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
  }
}

}  // namespace sluice::engine
