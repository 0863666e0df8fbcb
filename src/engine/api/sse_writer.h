// A streamed answer. Its head goes out with the first event, so that what fails before can still have a status of its
// own.
#pragma once

#include <string>
#include <string_view>

#include "net/server.h"
#include "net/sse.h"

namespace sluice::engine {

class SseWriter {
 public:
  explicit SseWriter(net::ServerExchange& exchange) : exchange_(exchange) {}

  // Queues an event for the next flush.
  void event(std::string_view payload) { net::append_sse(buffer_, payload); }
  // Sends what is queued, and returns when the kernel has taken it: while the client does not read, nothing is made for
  // it. False: the client has left.
  net::Task<bool> flush();
  // "[DONE]" and the end of the answer.
  net::Task<> finish();

 private:
  net::ServerExchange& exchange_;
  std::string buffer_;
};

}  // namespace sluice::engine
