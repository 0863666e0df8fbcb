// What an attempt's end means: for the breaker, and for whether it is repeated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/clock.h"
#include "net/http.h"

namespace sluice::gateway {

enum class Outcome : uint8_t {
  kOk,
  kClientError,  // an error that the request deserves: it says nothing of the worker
  kBusy,         // try elsewhere, count no fault
  kFault,
  kClientGone,
};
std::string_view to_string(Outcome outcome);

// Of an error of an engine whose front lives, by its reason: one rank that had the request ended, for which the request
// need not be to blame (protocol::kRankEndedReason), or two of them, so it is the request's fault and no other attempt
// is made (kTwoRanksEndedReason).
enum class EndedRanks : uint8_t { kNone, kOne, kTwo };
// An engine's error with a reason is never longer; of what is, nothing is read.
inline constexpr size_t kLongestReasoned = 16 << 10;
EndedRanks ended_ranks(std::string_view body);

// Of a worker's answer. Busy: 429, and 503 that says when to come back or has the engines' body of a full queue. Fault:
// 500, 502, 504 and any other 503. What ended two ranks is the error of a client. `ended`: as its body says.
Outcome classify(int status, const net::Headers& headers = {}, std::string_view body = {},
                 EndedRanks ended = EndedRanks::kNone);
// Repeated if attempts are left.
bool is_retryable(int status);
// Seconds only, the form that engines send.
std::optional<Duration> retry_after(const net::Headers& headers);
// Label of the error metrics.
std::string_view error_type(int status);

}  // namespace sluice::gateway
