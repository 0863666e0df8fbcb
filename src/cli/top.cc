// `sluice top`: what the ranks of a server do, an engine's or all of a gateway's, as its /v1/loads tells.
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/stop_signals.h"
#include "cli/commands.h"
#include "cli/top_view.h"
#include "net/client.h"

namespace sluice::cli {
namespace {

struct TopOptions {
  std::string url;
  std::optional<std::string> api_key;
  double interval;
  bool once;
};

const OptionTable<TopOptions>& top_option_table() {
  using O = TopOptions;
  static const OptionTable<O> table({
      {.name = "url",
       .field = &O::url,
       .value = std::string("http://127.0.0.1:30000"),
       .read_by = "cli/top",
       .group = "Server",
       .help = "The server to look at: an engine, or a gateway, which tells of all its workers."},
      {.name = "api-key",
       .field = &O::api_key,
       .value = std::optional<std::string>(),
       .read_by = "cli/top",
       .group = "Server",
       .help = "Its key, a gateway's for administration; default: OPENAI_API_KEY of the environment."},
      {.name = "interval",
       .field = &O::interval,
       .value = 1.0,
       .range = {0.1, 3600},
       .read_by = "cli/top",
       .group = "Display",
       .help = "Seconds between two looks."},
      {.name = "once",
       .field = &O::once,
       .value = false,
       .read_by = "cli/top",
       .group = "Display",
       .help = "Prints one view and ends; so does a top whose output is not a terminal."},
  });
  return table;
}

Result<std::string> look(const TopOptions& options, const net::Url& url, size_t width) {
  constexpr Duration kBound = std::chrono::seconds(5);
  net::Headers headers;
  const char* from_environment = std::getenv("OPENAI_API_KEY");
  if (options.api_key || from_environment) {
    headers.add("Authorization",
                fmt::format("Bearer {}", options.api_key.value_or(from_environment ? from_environment : "")));
  }
  SLUICE_TRY(const net::Response answer, net::blocking_fetch(url, "GET", "/v1/loads", headers, "",
                                                             {.connect = kBound, .head = kBound, .silence = kBound}));
  if (answer.status != 200) {
    return Error{ErrorCode::kUnavailable, fmt::format("{}/v1/loads was answered with {}{}", options.url, answer.status,
                                                      answer.status == 401 ? ": it wants another --api-key" : "")};
  }
  return top_view(options.url, answer.body, width);
}

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

}  // namespace

OptionView top_options() { return view_of(top_option_table()); }

int run_top(const Arguments& arguments) {
  const auto options = top_option_table().parse(arguments);
  if (!options.ok()) return fail(options.error());
  const auto url = net::parse_url(options->url);
  if (!url.ok()) return fail({ErrorCode::kBadOption, fmt::format("--url: {}", url.error().message)});
  if (options->once || ::isatty(STDOUT_FILENO) == 0) {
    const auto view = look(*options, *url, 0);
    if (!view.ok()) return fail(view.error());
    print(*view);
    return 0;
  }
  StopSignals signals;  // before the first thread
  const auto interval = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options->interval));
  do {
    const auto view = look(*options, *url, terminal_width());
    // From the top of the screen, and nothing of the view before below it. A server that is away may come back.
    print(fmt::format("\x1b[H\x1b[2J{}", view.ok() ? *view : fmt::format("{}\n", view.error().message)));
  } while (!signals.wait(interval));
  return 0;
}

}  // namespace sluice::cli
