// The latest requests, kept so that somebody can ask what happened to one: when each phase began, where it went and
// why, and how it ended. A ring of fixed size: the oldest record makes room for the newest, so memory does not depend
// on traffic.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "obs/trace_context.h"

namespace sluice::obs {

// Views are of literals, or of what lives as long as the journal. Times are since the start of the request.
struct RequestRecord {
  struct Phase {
    std::string_view name;  // "admitted", "chosen", "first_byte"
    Duration at{};
  };
  struct Score {
    uint32_t worker = 0;       // its number
    std::string_view why_not;  // it could not be used for this attempt; empty = it could
    double cost = 0;           // what the policy weighs
    double matched_share = 0;  // of the prompt, that the worker is believed to hold
  };
  // One attempt at a worker.
  struct Try {
    std::string worker;  // URL
    uint32_t number = 0;
    std::string_view policy, reason;
    double matched_share = 0;  // of the prompt, that the worker is believed to hold
    std::vector<Score> scores;
    // Of a try after which the client had seen nothing.
    std::optional<Duration> failed_at;
    int status = 0;  // of the worker's answer; 0 = there was none
    std::string error;
  };

  std::string id;
  std::string_view scheme = "http";  // of the connection to the client
  std::string_view method;
  std::string_view route;
  std::string model;
  std::string_view outcome;  // one word of the component's own
  std::string error_code;    // of the component's own answer
  std::string detail;        // more about an error, one line
  int status = 0;            // HTTP; 0 = the client left before an answer
  int attempts = 0;
  bool stream = false;
  int64_t started_unix_nanos = 0;
  Duration took{};  // in all; 0 while it runs
  uint64_t answer_bytes = 0;
  size_t prompt_bytes = 0;
  uint64_t prompt_hash = 0;
  // As the worker reported; -1 = it did not.
  int64_t prompt_tokens = -1, cached_tokens = -1, output_tokens = -1;
  std::vector<Phase> phases;
  std::vector<Try> tries;
  // With tracing on. `parent` is the span that the client named; zeros = none.
  std::optional<TraceContext> trace;
  SpanId parent_span{};

  // The last one that was asked; empty = none.
  std::string_view worker() const { return tries.empty() ? std::string_view() : tries.back().worker; }
  std::optional<Duration> phase_at(std::string_view name) const;
};

// Any thread. Records are spread over parts by their id, so that loops which finish requests at once rarely meet.
class Journal {
 public:
  // `capacity` records in all, rounded up to a multiple of the number of parts.
  explicit Journal(size_t capacity);

  void add(RequestRecord record);
  // Copies out: a reference would outlive the lock. The newest one where an id was used twice.
  std::optional<RequestRecord> find(std::string_view id) const;
  // The newest records by start, newest first, of those that `matches`, which is called under a lock: it looks at the
  // record and does nothing else. An empty function matches all.
  using Filter = std::function<bool(const RequestRecord&)>;
  std::vector<RequestRecord> latest(size_t count, const Filter& matches = {}) const;
  // Calls visit(record) for each, in no order, under the same rule.
  void each(const std::function<void(const RequestRecord&)>& visit) const;

 private:
  static constexpr size_t kParts = 16;

  struct Part {
    mutable std::mutex mutex;  // guards what follows; no other lock is taken under it
    std::vector<RequestRecord> ring;
    size_t next = 0;
  };

  const Part& part_of(std::string_view id) const;

  // Constant after construction.
  const size_t part_capacity_;
  std::array<Part, kParts> parts_;
};

}  // namespace sluice::obs
