// What a function returns when it can fail for a reason outside this program: a value, or an Error that says what was
// wrong and what would be right. Shaped like std::expected, so that C++23 can replace it.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace sluice {

// Kinds of expected failure. What each one means over HTTP is decided once, in protocol/ (the worker) and in
// gateway/error_shape (the gateway).
enum class ErrorCode {
  kInvalidArgument,   // the caller's input is wrong; the message names the field and the valid range
  kBadOption,         // a flag or a combination of flags is wrong
  kNotFound,          // no such model, worker, path, file or tensor
  kAlreadyExists,     //
  kPermissionDenied,  //
  kUnauthenticated,   //
  kTooLarge,          // over a limit on size
  kQueueFull,         // a bounded queue has no room
  kExhausted,         // memory, KV slots or file descriptors are used up
  kUnavailable,       // the other side says that it cannot serve now
  kRefused,           // nobody listens at the address
  kReset,             // the other side closed or reset in the middle
  kTimeout,           // a bounded wait ended; the message names what it waited for
  kCancelled,         // the caller, or the client behind it, went away
  kProtocol,          // what arrived breaks the protocol or the file format
  kUnimplemented,     // recognised and not built
  kInternal,          // none of the above
};

std::string_view to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

// A T or an Error. Asking a failed Result for its value is a broken invariant and ends the process.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit by design
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit by design

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    SLUICE_CHECK(ok(), "value of a failed Result: {}", error_message());
    return std::get<0>(state_);
  }
  const T& value() const& {
    SLUICE_CHECK(ok(), "value of a failed Result: {}", error_message());
    return std::get<0>(state_);
  }
  T&& value() && {
    SLUICE_CHECK(ok(), "value of a failed Result: {}", error_message());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& {
    SLUICE_CHECK(!ok(), "error of a successful Result");
    return std::get<1>(state_);
  }
  Error&& error() && {
    SLUICE_CHECK(!ok(), "error of a successful Result");
    return std::get<1>(std::move(state_));
  }

 private:
  std::string_view error_message() const { return ok() ? std::string_view() : std::get<1>(state_).message; }

  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), failed_(true) {}  // NOLINT: implicit by design

  bool ok() const { return !failed_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& {
    SLUICE_CHECK(failed_, "error of a successful Result");
    return error_;
  }
  Error&& error() && {
    SLUICE_CHECK(failed_, "error of a successful Result");
    return std::move(error_);
  }

 private:
  Error error_;
  bool failed_ = false;
};

}  // namespace sluice

#define SLUICE_CONCAT_INNER(a, b) a##b
#define SLUICE_CONCAT(a, b) SLUICE_CONCAT_INNER(a, b)

// SLUICE_TRY(auto x, f()): x is the value, or the error is returned from here. SLUICE_TRY_VOID for Result<void>.
// SLUICE_CO_TRY and SLUICE_CO_TRY_VOID are the same inside a coroutine.
#define SLUICE_TRY_IMPL(declaration, expression, tmp, ret) \
  auto tmp = (expression);                                 \
  if (!tmp.ok()) ret std::move(tmp).error();               \
  declaration = std::move(tmp).value()
#define SLUICE_TRY(declaration, expression) \
  SLUICE_TRY_IMPL(declaration, expression, SLUICE_CONCAT(sluice_try_, __LINE__), return )
#define SLUICE_CO_TRY(declaration, expression) \
  SLUICE_TRY_IMPL(declaration, expression, SLUICE_CONCAT(sluice_try_, __LINE__), co_return )
#define SLUICE_TRY_VOID_IMPL(expression, tmp, ret) \
  if (auto tmp = (expression); !tmp.ok()) ret std::move(tmp).error()
#define SLUICE_TRY_VOID(expression) SLUICE_TRY_VOID_IMPL(expression, SLUICE_CONCAT(sluice_try_, __LINE__), return )
#define SLUICE_CO_TRY_VOID(expression) \
  SLUICE_TRY_VOID_IMPL(expression, SLUICE_CONCAT(sluice_try_, __LINE__), co_return )
