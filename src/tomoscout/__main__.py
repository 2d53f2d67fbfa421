from tomoscout.cli import main

main()
