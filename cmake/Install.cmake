# cmake --install: the binary, its man pages (written by the binary from its option tables), shell completion, systemd units.
include(GNUInstallDirs)
set(packaging ${CMAKE_SOURCE_DIR}/packaging)

install(TARGETS sluice RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

install(CODE "execute_process(COMMAND \"$<TARGET_FILE:sluice>\" options --man-pages \"${CMAKE_BINARY_DIR}/man\"
                              COMMAND_ERROR_IS_FATAL ANY)")
install(DIRECTORY ${CMAKE_BINARY_DIR}/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 FILES_MATCHING PATTERN "*.1")

install(FILES ${packaging}/completion/sluice.bash RENAME sluice
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${packaging}/completion/_sluice DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)

set(units gateway)
if(SLUICE_ENGINE AND EXISTS ${CMAKE_SOURCE_DIR}/src/cli/server.cc)
  list(APPEND units server)
endif()
foreach(unit ${units})
  configure_file(${packaging}/systemd/sluice-${unit}.service.in ${CMAKE_BINARY_DIR}/systemd/sluice-${unit}.service @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/systemd/sluice-${unit}.service DESTINATION lib/systemd/system)
endforeach()
