#include "gateway/gather.h"

#include <boost/asio/redirect_error.hpp>

#include "net/stream.h"

namespace sluice::gateway {
namespace {

struct Join {
  Join(net::Executor executor, size_t tasks) : timer(executor, TimePoint::max()), left(tasks) {}
  net::Timer timer;
  size_t left;
};

net::Task<> run_one(std::shared_ptr<Join> join, std::function<net::Task<>()> task) {
  co_await task();
  if (--join->left == 0) join->timer.cancel();
}

}  // namespace

net::Task<> gather(net::EventLoop& loop, std::vector<std::function<net::Task<>()>> tasks) {
  auto join = std::make_shared<Join>(loop.executor(), tasks.size());
  for (auto& task : tasks) {
    loop.spawn([join, task = std::move(task)] { return run_one(join, task); });
  }
  boost::system::error_code ended;
  while (join->left > 0) co_await join->timer.async_wait(net::asio::redirect_error(net::use_task, ended));
}

}  // namespace sluice::gateway
