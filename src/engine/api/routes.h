// Which path is which endpoint, how it may be called and who may call it.
#pragma once

#include <string_view>

#include "engine/api/context.h"

namespace sluice::engine {

enum class Access { kOpen, kNormal, kAdmin };

struct Route {
  std::string_view path;     // ending in '*': every path that begins so
  std::string_view methods;  // "GET POST"
  Access access = Access::kNormal;
  net::Task<> (*serve)(ApiCall&) = nullptr;  // null: recognised and not built, 501 with `why`
  bool json_only = false;                    // the body must be declared as application/json
  std::string_view why;
  bool traced = false;  // it goes to the ranks, and its way through them is recorded
};

// Null: nothing is there.
const Route* find_route(std::string_view path);
bool allows(const Route& route, std::string_view method);

}  // namespace sluice::engine
