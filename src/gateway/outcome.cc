#include "gateway/outcome.h"

#include <charconv>

#include "gateway/body_scan.h"
#include "protocol/errors.h"

namespace sluice::gateway {

std::string_view to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::kOk:
      return "ok";
    case Outcome::kClientError:
      return "client_error";
    case Outcome::kBusy:
      return "busy";
    case Outcome::kFault:
      return "fault";
    case Outcome::kClientGone:
      return "client_gone";
  }
  return "unknown";
}

Outcome classify(int status, const net::Headers& headers, std::string_view body, EndedRanks ended) {
  if (status == 500 && ended == EndedRanks::kTwo) return Outcome::kClientError;
  switch (status) {
    case 429:
      return Outcome::kBusy;
    case 503: {
      const bool queue_full = body.size() < 1024 && body.find("The request queue is full") != std::string_view::npos;
      return headers.has("retry-after") || queue_full ? Outcome::kBusy : Outcome::kFault;
    }
    case 500:
    case 502:
    case 504:
      return Outcome::kFault;
    default:
      return status >= 400 ? Outcome::kClientError : Outcome::kOk;
  }
}

EndedRanks ended_ranks(std::string_view body) {
  if (body.size() > kLongestReasoned) return EndedRanks::kNone;
  const std::string reason = scan_error_reason(body);
  if (reason == protocol::kRankEndedReason) return EndedRanks::kOne;
  return reason == protocol::kTwoRanksEndedReason ? EndedRanks::kTwo : EndedRanks::kNone;
}

bool is_retryable(int status) {
  return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

std::optional<Duration> retry_after(const net::Headers& headers) {
  const auto value = headers.get("retry-after");
  if (!value) return std::nullopt;
  int64_t whole = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), whole);
  if (error != std::errc() || end != value->data() + value->size() || whole < 0 || whole > 86400) return std::nullopt;
  return std::chrono::seconds(whole);
}

std::string_view error_type(int status) {
  switch (status) {
    case 400:
      return "validation_error";
    case 404:
      return "no_workers";
    case 408:
    case 504:
      return "timeout";
    default:
      return status >= 500 ? "backend_error" : "internal_error";
  }
}

}  // namespace sluice::gateway
