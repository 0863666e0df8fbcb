// Reads the answer to one request as it arrives and notes when what came.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "bench/api.h"
#include "bench/outcome.h"
#include "net/sse.h"

namespace sluice::bench {

// What one event of a stream, or a whole answer, says.
struct ReplyEvent {
  bool has_text = false;
  std::string_view raw_text;  // as JSON, with its quotes; valid until the next parse on this thread
  std::string_view id;        // of the answer; valid as long
  std::optional<int64_t> prompt_tokens, completion_tokens, cached_tokens;
  std::optional<int64_t> sent_at_ns;  // the stamp of `sluice bench worker --canned-stamp`
  bool finished = false;              // a reason for the end was given
  std::string error;
};

// kProtocol if the text is not a JSON object.
Result<ReplyEvent> parse_reply(Api api, std::string_view json);

class ReplyMeter {
 public:
  struct Options {
    Api api = Api::kGenerate;
    bool stream = true;
    bool keep_text = false;
  };
  // Times count from `due`.
  ReplyMeter(Options options, TimePoint due) : options_(options), due_(due), last_event_(due), last_text_(due) {}

  // Bytes of the body of a 200, which arrived at `now`.
  void feed(std::string_view bytes, TimePoint now);
  // The body came to its end: fills in what was measured, and `error` unless the answer was whole.
  void finish(TimePoint now, Outcome& outcome);

 private:
  void on_event(std::string_view data, TimePoint now);
  void take(const ReplyEvent& event, TimePoint now);
  void take_text(const ReplyEvent& event, TimePoint now);

  // Constant after construction.
  const Options options_;
  const TimePoint due_;

  net::SseReader sse_;
  std::string body_;      // of a whole answer
  std::string raw_text_;  // of the last event of /generate, whose text holds all before it
  TimePoint last_event_;
  TimePoint last_text_;
  int64_t last_tokens_ = 0;
  bool done_ = false;
  Outcome seen_;
};

}  // namespace sluice::bench
