#include "gateway/console.h"

#include "base/rng.h"

namespace sluice::gateway {
namespace {

std::string with_nonce(const std::string& nonce) {
  constexpr std::string_view kMark = "{{nonce}}";
  std::string page;
  page.reserve(kConsolePage.size());
  std::string_view rest = kConsolePage;
  for (size_t at; (at = rest.find(kMark)) != std::string_view::npos; rest.remove_prefix(at + kMark.size())) {
    page.append(rest.substr(0, at)).append(nonce);
  }
  return page.append(rest);
}

}  // namespace

net::Task<net::Response> console(AdminCall&) {
  // Script and style of the page itself run, and nothing that found its way into it.
  const std::string nonce = fmt::format("{:016x}{:016x}", random_seed(), random_seed());
  net::Response response{200, {}, with_nonce(nonce)};
  auto& headers = response.headers;
  headers.add("Content-Type", "text/html; charset=utf-8");
  headers.add("Content-Security-Policy",
              fmt::format("default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; "
                          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                          nonce));
  headers.add("X-Content-Type-Options", "nosniff");
  headers.add("Referrer-Policy", "no-referrer");
  headers.add("Cache-Control", "no-store");
  co_return response;
}

}  // namespace sluice::gateway
