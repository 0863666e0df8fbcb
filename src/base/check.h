// SLUICE_CHECK(condition, format, arguments...): an invariant of ours. When it is broken this process is not to be
// trusted any more: it prints the place, the condition and the values, and aborts. Never used on what a client sends.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace sluice::internal {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, std::string_view message);

}  // namespace sluice::internal

#define SLUICE_CHECK(condition, ...)                                                                   \
  do {                                                                                                 \
    if (!(condition)) [[unlikely]]                                                                     \
      ::sluice::internal::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
