// GET /ui: the web console, one page without anything from elsewhere. It says nothing by itself: what it shows it asks
// for with the key that its user gives it.
#pragma once

#include "gateway/admin.h"

namespace sluice::gateway {

net::Task<net::Response> console(AdminCall& call);

// console/console.html, which the build makes a literal of; {{nonce}} stands where it needs one.
extern const std::string_view kConsolePage;

}  // namespace sluice::gateway
