// Asks several workers at once: one that hangs delays the whole answer by its own time limit and no more.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "net/loop.h"

namespace sluice::gateway {

struct GatherLimits {
  size_t at_once = SIZE_MAX;     // tasks under way at a time
  std::function<bool()> enough;  // asked after each task: true = those that are left do not matter
};

// Runs the tasks on the loop, and returns when the last one has ended or `enough` said so. Loop thread only. The tasks
// own what they use: they may outlive the caller, where that is dropped or has enough.
net::Task<> gather(net::EventLoop& loop, std::vector<std::function<net::Task<>()>> tasks, GatherLimits limits);

// ask(item) for each item, at most `at_once` at a time; the results in the order of the items.
template <class R, class T>
net::Task<std::vector<R>> gather_from(net::EventLoop& loop, std::vector<T> items, std::function<net::Task<R>(T)> ask,
                                      size_t at_once = SIZE_MAX) {
  auto results = std::make_shared<std::vector<R>>(items.size());
  std::vector<std::function<net::Task<>()>> tasks;
  for (size_t i = 0; i < items.size(); ++i) {
    tasks.push_back([results, i, item = items[i], ask]() -> net::Task<> { (*results)[i] = co_await ask(item); });
  }
  GatherLimits limits;
  limits.at_once = at_once;
  co_await gather(loop, std::move(tasks), std::move(limits));
  co_return std::move(*results);
}

}  // namespace sluice::gateway
