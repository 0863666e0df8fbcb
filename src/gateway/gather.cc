#include "gateway/gather.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>

#include "net/stream.h"

namespace sluice::gateway {
namespace {

struct Join {
  Join(net::Executor executor, std::vector<std::function<net::Task<>()>> all, GatherLimits bounds)
      : timer(executor, TimePoint::max()), tasks(std::move(all)), limits(std::move(bounds)), left(tasks.size()) {}
  net::Timer timer;
  std::vector<std::function<net::Task<>()>> tasks;
  const GatherLimits limits;
  size_t next = 0;
  size_t left;
  bool enough = false;
};

// One after the other, of those that nobody has begun.
net::Task<> run_some(std::shared_ptr<Join> join) {
  while (join->next < join->tasks.size() && !join->enough) {
    const auto task = std::move(join->tasks[join->next++]);
    co_await task();
    --join->left;
    join->enough = join->enough || (join->limits.enough && join->limits.enough());
    if (join->left == 0 || join->enough) join->timer.cancel();
  }
}

}  // namespace

net::Task<> gather(net::EventLoop& loop, std::vector<std::function<net::Task<>()>> tasks, GatherLimits limits) {
  const size_t lanes = std::min(tasks.size(), std::max<size_t>(limits.at_once, 1));
  auto join = std::make_shared<Join>(loop.executor(), std::move(tasks), std::move(limits));
  for (size_t i = 0; i < lanes; ++i) {
    loop.spawn([join] { return run_some(join); });
  }
  boost::system::error_code ended;
  while (join->left > 0 && !join->enough) {
    co_await join->timer.async_wait(net::asio::redirect_error(net::use_task, ended));
  }
}

}  // namespace sluice::gateway
