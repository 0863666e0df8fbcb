#include "engine/api/sse_writer.h"

namespace sluice::engine {

net::Task<bool> SseWriter::flush() {
  if (buffer_.empty()) co_return true;
  if (!exchange_.started()) {
    net::ResponseHead head;
    head.headers = {{"Content-Type", "text/event-stream; charset=utf-8"}, {"Cache-Control", "no-cache"}};
    const auto started = co_await exchange_.start(std::move(head));
    if (!started.ok()) co_return false;
  }
  const auto written = co_await exchange_.write(buffer_);
  buffer_.clear();
  co_return written.ok();
}

net::Task<> SseWriter::finish() {
  event("[DONE]");
  const bool sent = co_await flush();
  if (!sent) co_return;
  const auto finished = co_await exchange_.finish();
  (void)finished;  // a client that has left is not told
}

}  // namespace sluice::engine
