#include "parsers/call_object.h"

#include <nlohmann/json.hpp>

#include "protocol/fields.h"

namespace sluice::parsers {
namespace {

using nlohmann::ordered_json;

// What a JSON string says; nothing when it is none.
std::optional<std::string> string_in(std::string_view json) {
  const auto value = ordered_json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!value.is_string()) return std::nullopt;
  return value.get<std::string>();
}

// Some models write the arguments as a string that holds the object.
std::string arguments_in(std::string_view value) {
  const auto text = trimmed(value);
  if (text == "null") return "{}";
  if (auto inner = string_in(text); inner && ordered_json::accept(*inner)) return *inner;
  return std::string(text);
}

}  // namespace

CallObject::Status CallObject::take(TextWindow& window, ToolCallWriter& out) {
  while (end_ == End::kNotYet && !window.empty()) {
    const auto text = window.rest();
    const bool was_called = called_;
    const size_t taken = take_piece(text, out);
    if (!was_called) raw_ += text.substr(0, taken);
    window.drop(taken);
  }
  if (end_ == End::kNotYet) return Status::kMore;
  if (!called_) return Status::kNoCall;
  out.end();
  return Status::kDone;
}

// Bytes taken; 0 where the object ended or broke before them, or a value before them.
size_t CallObject::take_piece(std::string_view text, ToolCallWriter& out) {
  if (state_ == State::kInKey) {
    const size_t n = span_.push(text);
    key_ += text.substr(0, n);
    if (span_.done()) end_key();
    return n;
  }
  if (state_ == State::kValue) {
    const size_t n = span_.push(text);
    take_value(text.substr(0, n), out);
    if (span_.done()) end_value(out);
    return n;
  }
  if (is_space(text[0])) return 1;
  return take_sign(text[0]);
}

size_t CallObject::take_sign(char c) {
  if (state_ == State::kOpen && c == '{') {
    state_ = State::kKey;
  } else if (state_ == State::kKey && c == '"') {
    key_ = c;
    span_ = JsonSpan();
    span_.push(key_);
    state_ = State::kInKey;
  } else if (state_ == State::kColon && c == ':') {
    state_ = State::kValue;
    span_ = JsonSpan();
    value_.clear();
    streaming_ = false;
  } else if (state_ == State::kComma && c == ',') {
    state_ = State::kKey;
  } else if ((state_ == State::kComma || (state_ == State::kKey && first_)) && c == '}') {
    end_ = End::kDone;
  } else {
    end_ = End::kBroken;
    return 0;
  }
  return 1;
}

void CallObject::end_key() {
  auto key = string_in(key_);
  key_ = key ? std::move(*key) : "";
  first_ = false;
  known_ = known_ || is_arguments() || key_ == "name" || key_ == "type" || key_ == "id";
  state_ = State::kColon;
  // An answer in JSON that is no call is shown as soon as that is sure.
  if (!known_) end_ = End::kBroken;
}

void CallObject::take_value(std::string_view piece, ToolCallWriter& out) {
  if (streaming_) return out.arguments(piece);
  value_ += piece;
  if (!called_ || !is_arguments() || has_arguments_ || !trimmed(value_).starts_with('{')) return;
  streaming_ = true;
  has_arguments_ = true;
  out.arguments(std::string_view(value_).substr(value_.find('{')));
}

void CallObject::end_value(ToolCallWriter& out) {
  state_ = State::kComma;
  if (streaming_) return;
  if (is_arguments() && !has_arguments_) {
    has_arguments_ = true;
    auto arguments = arguments_in(value_);
    called_ ? out.arguments(arguments) : void(arguments_ = std::move(arguments));
  } else if (key_ == "name" && !called_) {
    const auto name = string_in(trimmed(value_));
    called_ = name && out.begin(*name);
    if (!called_) {
      end_ = End::kBroken;
    } else {
      out.arguments(arguments_);
    }
  }
}

std::string write_call_object(const ExampleCall& call, std::string_view arguments_key) {
  return fmt::format(R"({{"name": {}, "{}": {}}})", protocol::dump(call.name), arguments_key, call.arguments);
}

}  // namespace sluice::parsers
