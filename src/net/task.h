// The coroutine type of everything that waits on sockets or timers. A Task runs on one EventLoop's thread from its
// first line to its last; the executor is the concrete one, so that nothing is type-erased on the path of a request.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/detail/thread_info_base.hpp>
#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <new>

namespace boost::asio::detail {

// The frames of coroutines come from operator new, which has on a loop's thread what others have given back
// (net/block_cache.h). Asio itself keeps two for a thread, whatever their sizes, and a request has many of many sizes.
template <>
inline void* thread_info_base::allocate(awaitable_frame_tag, thread_info_base*, std::size_t size, std::size_t) {
  return ::operator new(size);
}
template <>
inline void thread_info_base::deallocate(awaitable_frame_tag, thread_info_base*, void* pointer, std::size_t) {
  ::operator delete(pointer);
}

}  // namespace boost::asio::detail

namespace sluice::net {

namespace asio = boost::asio;
using Executor = asio::io_context::executor_type;

template <class T = void>
using Task = asio::awaitable<T, Executor>;

}  // namespace sluice::net
