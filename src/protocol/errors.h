// Error bodies of the worker API (section 7.8 of the engine reference), and what each kind of error means over HTTP.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace sluice::protocol {

// The HTTP status of an expected failure.
int http_status(ErrorCode code);

// What happened, for programs: a member "reason" beside the message, where there is something to tell apart.
// The rank that had the request ended, for which the request need not be to blame, while the front lives.
inline constexpr std::string_view kRankEndedReason = "rank_ended";
// That of two ranks that had it, one after the other: it may well be to blame, and is not to be tried again.
inline constexpr std::string_view kTwoRanksEndedReason = "two_ranks_ended";

// {"object":"error","message":...,"type":...,"param":null,"code":status}: OpenAI endpoints, malformed bodies anywhere,
// failures of the engine. `reason` empty: the member is not there.
std::string error_body(int status, std::string_view message, std::string_view reason = {});
// {"error": error_body}: one event of an OpenAI stream.
std::string error_event(int status, std::string_view message, std::string_view reason = {});
// {"error":{"message":...}}: validation failures of /generate.
std::string native_error_body(std::string_view message);
// {"error":{"message","type","param","code"}}: /v1/models/{id}.
std::string model_not_found_body(std::string_view model);
// {"error":"Unauthorized"}, {"error":"Forbidden"}
std::string auth_error_body(int status);

}  // namespace sluice::protocol
