from compare.run import main

main()
