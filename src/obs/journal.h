// The latest requests, kept so that somebody can ask what happened to one: when each phase began, where it went and how
// it ended. A ring of fixed size: the oldest record makes room for the newest, so memory does not depend on traffic.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace sluice::obs {

struct RequestRecord {
  struct Phase {
    std::string_view name;  // a literal: "admitted", "chosen", "first_byte"
    Duration at{};          // since the start of the request
  };

  std::string id;
  std::string route;
  std::string model;
  std::string worker;   // where it went last; empty if nowhere
  std::string outcome;  // one word of the component's own
  std::string detail;   // more about the decision or the error, one line
  int status = 0;       // HTTP; 0 = the client left before an answer
  int attempts = 0;
  int64_t started_unix_nanos = 0;
  std::vector<Phase> phases;

  // One line: {"id":...,"phases":{"admitted":0.0012,...}}, times in seconds.
  std::string to_json() const;
};

// Any thread. Records are spread over parts by their id, so that loops which finish requests at once rarely meet.
class Journal {
 public:
  // `capacity` records in all, rounded up to a multiple of the number of parts.
  explicit Journal(size_t capacity);

  void add(RequestRecord record);
  // Copies out: a reference would outlive the lock. The newest one where an id was used twice.
  std::optional<RequestRecord> find(std::string_view id) const;
  // The newest records by start, newest first.
  std::vector<RequestRecord> latest(size_t count) const;

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
