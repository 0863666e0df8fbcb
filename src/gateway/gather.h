// Asks several workers at once: one that hangs delays the whole answer by its own time limit and no more.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "net/loop.h"

namespace sluice::gateway {

// Runs all tasks on the loop, at once, and returns when the last one has ended. Loop thread only. The tasks own what
// they use: they may outlive the caller if that is dropped.
net::Task<> gather(net::EventLoop& loop, std::vector<std::function<net::Task<>()>> tasks);

// ask(item) for each item, at once; the results in the order of the items.
template <class R, class T>
net::Task<std::vector<R>> gather_from(net::EventLoop& loop, std::vector<T> items, std::function<net::Task<R>(T)> ask) {
  auto results = std::make_shared<std::vector<R>>(items.size());
  std::vector<std::function<net::Task<>()>> tasks;
  for (size_t i = 0; i < items.size(); ++i) {
    tasks.push_back([results, i, item = items[i], ask]() -> net::Task<> { (*results)[i] = co_await ask(item); });
  }
  co_await gather(loop, std::move(tasks));
  co_return std::move(*results);
}

}  // namespace sluice::gateway
