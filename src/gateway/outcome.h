// What an attempt's end means: for the breaker, and for whether it is repeated (gateway-reference.md 1.1, 6.2, 6.3).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "net/http.h"

namespace sluice::gateway {

enum class Outcome : uint8_t {
  kOk,
  kClientError,  // 4xx: the worker is well
  kBusy,         // 429, 503 with Retry-After: try elsewhere, count no fault
  kFault,        // refused, reset, timed out, 408, 500, 502, 503, 504
  kClientGone,
};
std::string_view to_string(Outcome outcome);

Outcome classify(const net::ResponseHead& head);
// Repeated if attempts are left.
bool is_retryable(int status);
// Seconds only, the form that engines send.
std::optional<Duration> retry_after(const net::Headers& headers);

}  // namespace sluice::gateway
