// The coroutine type of everything that waits on sockets or timers. A Task runs on one EventLoop's thread from its
// first line to its last; the executor is the concrete one, so that nothing is type-erased on the path of a request.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

namespace sluice::net {

namespace asio = boost::asio;
using Executor = asio::io_context::executor_type;

template <class T = void>
using Task = asio::awaitable<T, Executor>;

}  // namespace sluice::net
