// Reading a JSON body that somebody sent: typed, bounded, with errors that name the field and what would be valid.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "protocol/json.h"

namespace sluice::protocol {

// A JSON object. kInvalidArgument when the text is not JSON, not an object, nested deeper than 64 levels or holds an
// object with more than 1024 members: its parsed form looks members up one by one.
Result<nlohmann::ordered_json> parse_object(std::string_view text);

// Ranges of whole numbers and of fractions, for messages and checks.
struct IntegerRange {
  int64_t min = INT64_MIN;
  int64_t max = INT64_MAX;
};
struct NumberRange {
  double min = -1e308;
  double max = 1e308;
  bool open_below = false;  // min itself is not valid
};

// The members of one object. A member of the body itself that has a wrong type is kProtocol, everything else that is
// wrong kInvalidArgument: /generate answers the two in different forms. A member that is absent or null is not given,
// and the caller's default stands. The first error sticks, and everything after it answers defaults, so that a caller
// reads all fields and asks once.
class Fields {
 public:
  // `where` is put before names: "sampling_params.". The object outlives this.
  explicit Fields(const nlohmann::ordered_json& object, std::string where = "");

  // Null when not given.
  const nlohmann::ordered_json* find(std::string_view name) const;
  bool given(std::string_view name) const { return find(name) != nullptr; }

  bool boolean(std::string_view name, bool otherwise);
  int64_t integer(std::string_view name, int64_t otherwise, IntegerRange range = {});
  std::optional<int64_t> integer(std::string_view name, IntegerRange range = {});
  double number(std::string_view name, double otherwise, NumberRange range = {});
  // Strings of at most `most_bytes` each.
  std::string text(std::string_view name, std::string otherwise = "", size_t most_bytes = SIZE_MAX);
  // A string, or a list of strings.
  std::vector<std::string> texts(std::string_view name, size_t most_bytes = SIZE_MAX);
  // A list of at most `most` token ids.
  std::vector<int32_t> token_ids(std::string_view name, size_t most = SIZE_MAX);

  // Fields that are recognised and not served: an error unless not given, or equal to `harmless` (JSON text).
  void refuse(std::string_view name, std::string_view why, std::string_view harmless = "null");

  // An error where the object has a member that nobody has asked for so far, null or not. The names that were asked for
  // must still be there.
  void refuse_others();

  // As messages call it.
  std::string full_name(std::string_view name) const { return where_ + std::string(name); }
  void fail(std::string message) { fail(Error{ErrorCode::kInvalidArgument, std::move(message)}); }
  void fail(Error error);
  bool ok() const { return !error_; }
  const Error& error() const { return *error_; }

 private:
  // `type`: the value is not even of the right kind.
  void wrong(std::string_view name, std::string_view wanted, const nlohmann::ordered_json& got, bool type = true);
  // A copy, or an error and nothing.
  std::string bounded(std::string_view name, const nlohmann::ordered_json& text, size_t most_bytes);

  const nlohmann::ordered_json& object_;
  std::string where_;
  mutable std::vector<std::string_view> asked_;  // names
  std::optional<Error> error_;
};

// One token id of a list, or nothing if the value is none.
std::optional<int32_t> as_token_id(const nlohmann::ordered_json& value);

}  // namespace sluice::protocol
