#include "protocol/errors.h"

#include <nlohmann/json.hpp>

#include "protocol/fields.h"

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

// The runtime's names of kinds: its own for bad requests, the number itself for what the scheduler aborts.
std::string type_of(int status) {
  switch (status) {
    case 400:
      return "BadRequestError";
    case 404:
      return "NotFoundError";
    case 405:
      return "MethodNotAllowed";
    case 413:
      return "RequestTooLarge";
    case 501:
      return "NotImplementedError";
    default:
      return std::to_string(status);
  }
}

ordered_json error_object(int status, std::string_view message, std::string_view reason) {
  ordered_json out = {
      {"object", "error"}, {"message", message}, {"type", type_of(status)}, {"param", nullptr}, {"code", status}};
  if (!reason.empty()) out["reason"] = reason;
  return out;
}

}  // namespace

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kBadOption:
    case ErrorCode::kProtocol:
      return 400;
    case ErrorCode::kUnauthenticated:
      return 401;
    case ErrorCode::kPermissionDenied:
      return 403;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kAlreadyExists:
      return 400;
    case ErrorCode::kTooLarge:
      return 413;
    case ErrorCode::kTimeout:
      return 408;
    case ErrorCode::kQueueFull:
    case ErrorCode::kExhausted:
    case ErrorCode::kUnavailable:
    case ErrorCode::kRefused:
    case ErrorCode::kReset:
    case ErrorCode::kCancelled:
      return 503;
    case ErrorCode::kUnimplemented:
      return 501;
    case ErrorCode::kInternal:
      return 500;
  }
  return 500;
}

std::string error_body(int status, std::string_view message, std::string_view reason) {
  return dump(error_object(status, message, reason));
}

std::string error_event(int status, std::string_view message, std::string_view reason) {
  ordered_json out = ordered_json::object();
  out["error"] = error_object(status, message, reason);
  return dump(out);
}

std::string native_error_body(std::string_view message) {
  ordered_json out = ordered_json::object();
  out["error"] = ordered_json{{"message", message}};
  return dump(out);
}

std::string model_not_found_body(std::string_view model) {
  ordered_json out = ordered_json::object();
  out["error"] = {{"message", fmt::format("The model '{}' does not exist", model)},
                  {"type", "invalid_request_error"},
                  {"param", "model"},
                  {"code", "model_not_found"}};
  return dump(out);
}

std::string auth_error_body(int status) {
  return status == 403 ? R"({"error":"Forbidden"})" : R"({"error":"Unauthorized"})";
}

}  // namespace sluice::protocol
